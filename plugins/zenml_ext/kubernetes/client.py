"""The Kubernetes API as JSON in and out, and which of its errors are transient."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from typing import Any, TypeVar

from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError
from zenml.integrations.kubernetes import kube_utils

from mlops_ext.redaction import redact, redacted
from mlops_ext.retry import doubling, retry

log = logging.getLogger(__name__)

T = TypeVar("T")
Manifest = dict[str, Any]

_NOT_FOUND, _CONFLICT, _UNAUTHORIZED, _FORBIDDEN = 404, 409, 401, 403
_TRANSIENT = frozenset({401, 408, 409, 425, 429})
_SERVER_ERROR = 500
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0
_RETRY_S = 300.0
"""How long a Job's creation is tried again: longer than an API server takes to restart."""


def is_transient(error: BaseException) -> bool:
    """Whether *error* may pass: the API server or the network is busy or away."""
    if isinstance(error, ApiException):
        return (
            error.status in _TRANSIENT or (error.status or 0) >= _SERVER_ERROR or not error.status
        )
    return isinstance(error, (HTTPError, OSError))


def describe_api_error(error: BaseException) -> str:
    """An API error in one line, without what is secret."""
    if isinstance(error, ApiException):
        body = error.body if isinstance(error.body, str) else ""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            body = str(json.loads(body)["message"])
        return redact(f"{error.status} {error.reason}: {body}".rstrip(": "))
    return redacted(error)


def retry_call(
    call: Callable[[], T],
    *,
    refresh: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """What *call* returns, tried again for five minutes while its error is transient.

    Args:
        call: the request.
        refresh: called after a 401, to read the token again.
        sleep: waits.
        clock: seconds.
    """

    def on_retry(error: Exception, pause_s: float) -> None:
        log.warning("Kubernetes: %s; trying again in %.1f s", describe_api_error(error), pause_s)
        if isinstance(error, ApiException) and error.status == _UNAUTHORIZED:
            refresh()

    return retry(
        call,
        pauses=doubling(_FIRST_WAIT_S, _LONGEST_WAIT_S),
        is_transient=is_transient,
        on_retry=on_retry,
        total_s=_RETRY_S,
        sleep=sleep,
        clock=clock,
    )


class Recorder:
    """An API object that keeps what chosen calls of it returned.

    ZenML's own check of a Job reads the Job, and its pods if it needs them; what it read is there
    for us, without a call of our own.
    """

    def __init__(self, api: Any, *names: str) -> None:
        self._api, self._names = api, names
        self.seen: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """The API's own attribute, wrapped where its answer is to be kept."""
        found = getattr(self._api, name)
        if name not in self._names:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = found(*args, **kwargs)
            self.seen[name] = answer
            return answer

        call.__name__ = name
        return call


class KubeApi:
    """The calls we make, on the API objects ZenML made, in one namespace."""

    def __init__(self, batch: Any, core: Any, namespace: str, timeout_s: int | None = None) -> None:
        self.batch, self.core, self.namespace = batch, core, namespace
        self._options: dict[str, Any] = {"_request_timeout": timeout_s} if timeout_s else {}

    def plain(self, answer: Any) -> Any:
        """An API object as JSON data."""
        return self.batch.api_client.sanitize_for_serialization(answer)

    def refresh(self) -> None:
        """Read the service account's token again, where there is one."""
        from kubernetes import config

        with contextlib.suppress(config.ConfigException, OSError):
            config.load_incluster_config(client_configuration=self.batch.api_client.configuration)

    def job(self, name: str) -> Manifest:
        """A Job as the API server has it.

        The client's own objects lack the fields that are newer than it, such as the restart
        policy of an init container.
        """
        answer = self.batch.read_namespaced_job(
            name=name, namespace=self.namespace, _preload_content=False, **self._options
        )
        found: Manifest = json.loads(answer.data)
        return found

    def jobs(self, selector: str) -> list[Manifest]:
        """The Jobs that a label selector picks."""
        return self._items(self.batch.list_namespaced_job, label_selector=selector)

    def pod(self, name: str) -> Manifest:
        """A pod."""
        found: Manifest = self.plain(
            self.core.read_namespaced_pod(name=name, namespace=self.namespace, **self._options)
        )
        return found

    def pods_of(self, job: str) -> list[Manifest]:
        """The pods of a Job."""
        return self._items(self.core.list_namespaced_pod, label_selector=f"job-name={job}")

    def pods_of_step(self, run_id: str, step: str) -> list[Manifest]:
        """Every pod of a step; none where they may not be read."""
        labels = f"run_id={run_id},step_name={kube_utils.sanitize_label_value(step)}"
        return self._readable(self.core.list_namespaced_pod, label_selector=labels)

    def create_job(self, manifest: Mapping[str, Any]) -> Manifest:
        """Create a Job; one of the same name that is there already is as good.

        A name is made for one attempt of one step. A request whose answer was lost has created
        the Job, and so may have an orchestrator pod that died before it could say so.
        """
        try:
            created = self.batch.create_namespaced_job(
                namespace=self.namespace, body=dict(manifest), **self._options
            )
        except ApiException as error:
            if error.status != _CONFLICT:
                raise
            with _unless(_NOT_FOUND):
                return self.job(manifest["metadata"]["name"])
            raise  # a conflict of another kind
        found: Manifest = self.plain(created)
        return found

    def patch_job(self, name: str, patch: Mapping[str, Any]) -> None:
        """Patch a Job; one that is gone needs none."""
        with _unless(_NOT_FOUND):
            self.batch.patch_namespaced_job(
                name=name, namespace=self.namespace, body=dict(patch), **self._options
            )

    def delete_job(self, name: str) -> None:
        """Delete a Job and its pods."""
        with _unless(_NOT_FOUND):
            self.batch.delete_namespaced_job(
                name=name,
                namespace=self.namespace,
                propagation_policy="Foreground",
                **self._options,
            )

    def events_of(self, name: str) -> list[Manifest]:
        """The events about an object; none where they may not be read."""
        return self._readable(
            self.core.list_namespaced_event, field_selector=f"involvedObject.name={name}"
        )

    def node_oom_events(self, node: str) -> list[Manifest]:
        """A node's events of out-of-memory kills; none where they may not be read."""
        return self._readable(
            self.core.list_namespaced_event,
            namespace="default",
            field_selector=f"involvedObject.kind=Node,involvedObject.name={node},reason=SystemOOM",
        )

    def create_event(self, job: Mapping[str, Any], reason: str, message: str) -> None:
        """An event about a Job; where that is not allowed, none."""
        meta, stamp = job["metadata"], datetime.now(timezone.utc).isoformat()
        body = {
            "metadata": {"generateName": f"{meta['name'][:50]}."},
            "involvedObject": {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "name": meta["name"],
                "namespace": self.namespace,
                "uid": meta.get("uid"),
            },
            "reason": reason,
            "message": message[:1000],
            "type": "Warning",
            "count": 1,
            "firstTimestamp": stamp,
            "lastTimestamp": stamp,
            "reportingComponent": "mlops-ext",
            "source": {"component": "mlops-ext"},
        }
        try:
            self.core.create_namespaced_event(namespace=self.namespace, body=body, **self._options)
        except (ApiException, HTTPError, OSError) as error:
            log.debug("no event: %s", describe_api_error(error))

    def fetch(self, kind: str) -> list[Manifest]:
        """The objects of a kind, for `capacity.CapsReader`; none where they may not be read."""
        core = self.core
        if kind == "nodes":
            return self._readable(core.list_node, namespace=None)
        if kind == "pods":
            everywhere = self._readable(core.list_pod_for_all_namespaces, namespace=None)
            return everywhere or self._readable(core.list_namespaced_pod)
        name = {"limitranges": "limit_range", "resourcequotas": "resource_quota"}[kind]
        return self._readable(getattr(core, f"list_namespaced_{name}"))

    def _items(self, call: Callable[..., Any], **query: str | None) -> list[Manifest]:
        place = {"namespace": self.namespace, **query, **self._options}
        found: list[Manifest] = self.plain(
            call(**{name: value for name, value in place.items() if value is not None})
        )["items"]
        return found

    def _readable(self, call: Callable[..., Any], **query: str | None) -> list[Manifest]:
        try:
            return self._items(call, **query)
        except ApiException as error:
            if error.status not in {_FORBIDDEN, _NOT_FOUND}:
                raise
            return []


@contextlib.contextmanager
def _unless(status: int) -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        if error.status != status:
            raise
