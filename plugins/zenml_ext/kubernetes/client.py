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

UNANSWERED = (ApiException, HTTPError, OSError)
"""What the client raises if the API server refuses, is busy, or cannot be reached."""
_NOT_FOUND, _CONFLICT, _UNAUTHORIZED, _FORBIDDEN = 404, 409, 401, 403
_TRANSIENT = frozenset({401, 408, 409, 425, 429})
_SERVER_ERROR = 500
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0
# How long a Job's creation is tried again: longer than an API server takes to restart.
_RETRY_S = 300.0


def is_transient(error: BaseException) -> bool:
    """Whether *error* may pass: the API server or the network is busy or away."""
    if isinstance(error, ApiException):
        status = error.status or _SERVER_ERROR
        return status in _TRANSIENT or status >= _SERVER_ERROR
    return isinstance(error, UNANSWERED)


def describe_api_error(error: BaseException) -> str:
    """An API error in one line, without what is secret."""
    if isinstance(error, ApiException):
        words = error.body.decode() if isinstance(error.body, bytes) else error.body or ""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            words = str(json.loads(words)["message"])
        return redact(f"{error.status} {error.reason}: {words}".rstrip(": "))
    return redacted(error)


def retry_call(
    call: Callable[[], T],
    *,
    refresh: Callable[[], None] = lambda: None,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """What *call* returns, tried again for five minutes while its error is transient.

    Args:
        call: the request.
        refresh: called after a 401, to read the token again.
        sleep: waits.
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
    """The calls we make, JSON in and out, in one namespace, on the API objects ZenML made.

    The client's own classes drop the fields that are newer than it, such as the restart policy of
    an init container, so what they would make of an answer is not used.
    """

    def __init__(self, batch: Any, core: Any, namespace: str, timeout_s: int | None = None) -> None:
        self.batch, self.core, self.namespace = batch, core, namespace
        self._timeout_s = timeout_s

    def plain(self, answer: Any) -> Any:
        """An API object as JSON data."""
        return self.batch.api_client.sanitize_for_serialization(answer)

    def refresh(self) -> None:
        """Read the service account's token again, where there is one."""
        from kubernetes import config

        with contextlib.suppress(config.ConfigException, OSError):
            config.load_incluster_config(client_configuration=self.batch.api_client.configuration)

    def call(
        self, method: str, path: str, body: Any = None, *, as_user: str = "", **query: str
    ) -> Manifest:
        """The JSON that the API server answers; *as_user*: asked on behalf of that user."""
        patch = "application/strategic-merge-patch+json"
        kind = {"Content-Type": patch if method == "PATCH" else "application/json"}
        answer = self.batch.api_client.call_api(
            path,
            method,
            {},
            list(query.items()),
            {**kind, **({"Impersonate-User": as_user} if as_user else {})},
            body=body,
            auth_settings=["BearerToken"],
            _return_http_data_only=True,
            _preload_content=False,
            _request_timeout=self._timeout_s,
        )
        found: Manifest = json.loads(answer.data)
        return found

    def job(self, name: str) -> Manifest:
        """A Job as the API server has it."""
        return self.call("GET", self._path("jobs", name))

    def jobs(self, selector: str) -> list[Manifest]:
        """The Jobs that a label selector picks."""
        return self._items("jobs", labelSelector=selector)

    def pod(self, name: str) -> Manifest:
        """A pod."""
        return self.call("GET", self._path("pods", name))

    def pods_of(self, job: str) -> list[Manifest]:
        """The pods of a Job."""
        return self._items("pods", labelSelector=f"job-name={job}")

    def pods_of_step(self, run_id: str, step: str) -> list[Manifest]:
        """Every pod of a step; none where they may not be read."""
        labels = f"run_id={run_id},step_name={kube_utils.sanitize_label_value(step)}"
        return self.readable("pods", labelSelector=labels)

    def create_job(self, manifest: Mapping[str, Any]) -> Manifest:
        """Create a Job; one of the same name that is there already is as good.

        A name is made for one attempt of one step. A request whose answer was lost has created
        the Job, and so may have an orchestrator pod that died before it could say so.
        """
        try:
            return self.call("POST", self._path("jobs"), dict(manifest))
        except ApiException as error:
            if error.status != _CONFLICT:
                raise
            with _unless_gone():
                return self.job(manifest["metadata"]["name"])
            raise  # a conflict of another kind

    def patch_job(self, name: str, patch: Mapping[str, Any]) -> None:
        """Patch a Job; one that is gone needs none."""
        with _unless_gone():
            self.call("PATCH", self._path("jobs", name), dict(patch))

    def delete_job(self, name: str) -> None:
        """Delete a Job and its pods."""
        with _unless_gone():
            self.call("DELETE", self._path("jobs", name), propagationPolicy="Foreground")

    def events_of(self, name: str) -> list[Manifest]:
        """The events about an object; none where they may not be read."""
        return self.readable("events", fieldSelector=f"involvedObject.name={name}")

    def node_oom_events(self, node: str) -> list[Manifest]:
        """A node's events of out-of-memory kills; none where they may not be read."""
        what = f"involvedObject.kind=Node,involvedObject.name={node},reason=SystemOOM"
        return self.readable("events", namespace="default", fieldSelector=what)

    def create_event(self, job: Mapping[str, Any], reason: str, message: str) -> None:
        """An event about a Job; where that is not allowed, none."""
        meta, stamp = job["metadata"], datetime.now(timezone.utc).isoformat()
        involved = {key: meta[key] for key in ("name", "namespace", "uid") if key in meta}
        body = {
            "metadata": {"generateName": f"{meta['name'][:50]}."},
            "involvedObject": {"apiVersion": "batch/v1", "kind": "Job", **involved},
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
            self.call("POST", self._path("events"), body)
        except UNANSWERED as error:
            log.debug("no event: %s", describe_api_error(error))

    def fetch(self, kind: str) -> list[Manifest]:
        """The objects of a kind, for `capacity.CapsReader`; none where they may not be read."""
        if kind == "pods":
            return self.readable(kind, namespace="") or self.readable(kind)
        return self.readable(kind, namespace="" if kind == "nodes" else None)

    def _path(self, kind: str, name: str = "", namespace: str | None = None) -> str:
        """Where objects of a *kind* are; *namespace* may be "" for all."""
        place = self.namespace if namespace is None else namespace
        parts = ("/apis/batch/v1" if kind == "jobs" else "/api/v1", place and f"namespaces/{place}")
        return "/".join(part for part in (*parts, kind, name) if part)

    def _items(self, kind: str, namespace: str | None = None, **query: str) -> list[Manifest]:
        found: list[Manifest] = self.call("GET", self._path(kind, "", namespace), **query)["items"]
        return found

    def readable(self, kind: str, namespace: str | None = None, **query: str) -> list[Manifest]:
        """The objects of a *kind*; none where they may not be read."""
        try:
            return self._items(kind, namespace, **query)
        except ApiException as error:
            if error.status not in {_FORBIDDEN, _NOT_FOUND}:
                raise
            return []


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except ApiException as error:
        if error.status != _NOT_FOUND:
            raise
