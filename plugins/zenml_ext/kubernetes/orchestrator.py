"""ZenML's Kubernetes orchestrator whose steps survive out-of-memory."""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.metadata
import logging
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError
from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.integrations.kubernetes import KubernetesIntegration, kube_utils
from zenml.integrations.kubernetes.orchestrators import KubernetesOrchestrator
from zenml.integrations.kubernetes.pod_settings import KubernetesPodSettings

from mlops_ext.memory import Quantity
from zenml_ext.kubernetes.client import KubeApi, describe_api_error
from zenml_ext.kubernetes.objects.job import (
    POD_VARIABLE,
    is_finished,
    latest_jobs,
    superseding_patch,
)
from zenml_ext.kubernetes.objects.volumes import shm_parts, temp_dir_parts
from zenml_ext.kubernetes.settings import KubernetesOomConfig, KubernetesOomSettings
from zenml_ext.kubernetes.supervisor.step_runs import StepFacts
from zenml_ext.kubernetes.supervisor.supervisor import Supervisor
from zenml_ext.memory.exits import RETRY_MEMORY_ERROR
from zenml_ext.memory.policy import request_of

if TYPE_CHECKING:
    from zenml.config.base_settings import BaseSettings
    from zenml.config.step_run_info import StepRunInfo
    from zenml.metadata.metadata_types import MetadataType
    from zenml.models import PipelineRunResponse, StepRunResponse
    from zenml.orchestrators import SubmissionResult

log = logging.getLogger(__name__)

_STATIC_ENTRYPOINT = "kubernetes_orchestrator_entrypoint"
_OWN_ENTRYPOINT = "zenml_ext.kubernetes.supervisor.entrypoint"
_DYNAMIC_ENTRYPOINTS = {
    "zenml.pipelines.dynamic.entrypoint_configuration.DynamicPipelineEntrypointConfiguration": (
        "zenml_ext.kubernetes.dynamic.DynamicEntrypointConfiguration"
    )
}
_DISTRIBUTION = "mlops-ext"
_ORCHESTRATOR_MEMORY = "600Mi"
_RETRY_MEMORY_ERROR = {"name": RETRY_MEMORY_ERROR, "value": "1"}


class KubernetesOomOrchestrator(KubernetesOrchestrator):
    """ZenML's Kubernetes orchestrator; steps killed for memory run again with more."""

    _being_submitted = threading.local()

    @property
    def config(self) -> KubernetesOomConfig:
        """The configuration."""
        return cast("KubernetesOomConfig", self._config)

    @property
    def settings_class(self) -> type[BaseSettings]:
        """The settings class."""
        return cast("type[BaseSettings]", KubernetesOomSettings)

    @property
    def requirements(self) -> set[str]:
        """What an image needs: the parent's requirements and this distribution.

        ZenML looks requirements up by the module of a component's class, and finds none for a
        class that lives elsewhere.
        """
        version = importlib.metadata.version(_DISTRIBUTION)
        own = self.config.mlops_ext_requirement or f"{_DISTRIBUTION}[zenml]=={version}"
        parents = KubernetesIntegration.get_requirements()
        return {*super().requirements, *parents, own}

    # -- settings -----------------------------------------------------------------------------

    def get_settings(self, container: Any) -> BaseSettings:
        """The settings; for a step with its memory and its temporary directory in the pod's.

        For a snapshot with the memory of the orchestrator's pod.
        """
        settings = super().get_settings(container)
        if not isinstance(settings, KubernetesOomSettings):
            return settings
        if hasattr(container, "is_dynamic") and settings.protect_orchestrator:
            pod = protected(settings, is_dynamic=container.is_dynamic)
            changed = settings.model_copy(update={"orchestrator_pod_settings": pod})
            return cast("BaseSettings", changed)
        if not (hasattr(container, "config") and hasattr(container, "spec")):  # no step
            return settings
        changed = settings.model_copy(update={"pod_settings": step_pod(settings, container)})
        return cast("BaseSettings", changed)

    # -- the orchestrator's pod -----------------------------------------------------------------

    def _submit_orchestrator_job(
        self, snapshot: Any, command: list[str], args: list[str], *more: Any, **kwargs: Any
    ) -> SubmissionResult | None:
        """Submit with our entrypoints in place of ZenML's."""
        if command[-1].endswith(_STATIC_ENTRYPOINT):
            command = [*command[:-1], _OWN_ENTRYPOINT]
        args = [_DYNAMIC_ENTRYPOINTS.get(one, one) for one in args]
        return super()._submit_orchestrator_job(snapshot, command, args, *more, **kwargs)

    def _prepare_job_manifest(self, *args: Any, **kwargs: Any) -> Any:
        """Have a dynamic pipeline's step supervised."""
        manifest = super()._prepare_job_manifest(*args, **kwargs)
        info = getattr(self._being_submitted, "info", None)
        if info is None:
            return manifest
        plain = KubeApi(self._k8s_batch_api, None, "").plain(manifest)
        facts = self._learn(info.pipeline_step_name, info.pipeline.name, info)
        return self._supervisor.prepare(plain, facts, str(info.run_id))

    # -- dynamic pipelines ------------------------------------------------------------------------

    def submit_isolated_step_with_allocation(
        self, step_run_info: StepRunInfo, *args: Any, **kwargs: Any
    ) -> None:
        """Submit a step of a dynamic pipeline under supervision (ZenML 0.96 and later)."""
        with self._submitting(step_run_info):
            super().submit_isolated_step_with_allocation(step_run_info, *args, **kwargs)

    def submit_isolated_step(self, step_run_info: StepRunInfo, *args: Any, **kwargs: Any) -> None:
        """Submit a step of a dynamic pipeline under supervision (ZenML before 0.96)."""
        with self._submitting(step_run_info):
            super().submit_isolated_step(step_run_info, *args, **kwargs)

    @contextlib.contextmanager
    def _submitting(self, info: StepRunInfo) -> Iterator[None]:
        """Inside, `_prepare_job_manifest` knows the step that this thread submits."""
        self._being_submitted.info = info
        try:
            yield
        finally:
            self._being_submitted.info = None

    def get_isolated_step_status(self, step_run: StepRunResponse) -> ExecutionStatus:
        """The state of a dynamic pipeline's step, of whatever Jobs it took."""
        api = self._api()
        try:
            jobs = api.jobs(f"step_run_id={step_run.id}")
        except (ApiException, HTTPError, OSError) as error:
            log.warning("Step run %s: %s; asking again.", step_run.id, describe_api_error(error))
            return ExecutionStatus.RUNNING
        current, superseded = latest_jobs(jobs)
        if not current:
            log.warning("No Job for step run %s: somebody deleted it.", step_run.id)
            return ExecutionStatus.FAILED
        for job, successor in superseded:
            with contextlib.suppress(ApiException, HTTPError, OSError):
                api.patch_job(job["metadata"]["name"], superseding_patch(job, successor))
        if step_run.name not in self._known:
            run = Client().get_pipeline_run(step_run.pipeline_run_id, hydrate=False)
            self._learn(step_run.name, run.pipeline.name if run.pipeline else "", step_run)
        retries = getattr(self.config, "max_api_retries", None)  # of a later ZenML
        status, message = self._supervisor.check(
            batch_api=api.batch,
            core_api=api.core,
            namespace=api.namespace,
            job_name=current[0]["metadata"]["name"],
            api_request_timeout=self.config.api_request_timeout,
            **({} if retries is None else {"max_retries": retries}),
        )
        if status is kube_utils.JobStatus.SUCCEEDED:
            return ExecutionStatus.COMPLETED
        if status is kube_utils.JobStatus.FAILED:
            log.error("Step %s failed: %s", step_run.name, message)
            return ExecutionStatus.FAILED
        return ExecutionStatus.RUNNING

    def stop_isolated_step(self, step_run: StepRunResponse) -> None:
        """Delete every Job of the step that is not finished, not the first found alone."""
        api = self._api()
        try:
            for job in api.jobs(f"step_run_id={step_run.id}"):
                if not is_finished(job):
                    api.delete_job(job["metadata"]["name"])
                    log.info("Stopped step Job %s.", job["metadata"]["name"])
        except (ApiException, HTTPError, OSError) as error:
            log.warning(
                "Step run %s could not be stopped: %s", step_run.id, describe_api_error(error)
            )

    # -- the client's view ----------------------------------------------------------------------

    def fetch_status(self, run: PipelineRunResponse, include_steps: bool = False) -> Any:  # noqa: FBT001, FBT002 - the parent's signature
        """Like the parent's, but a failed Job is no failed step while it may still be retried.

        What has failed for good the orchestrator's own process publishes.
        """
        status, steps = super().fetch_status(run, include_steps=include_steps)
        is_over = status is not None and status.is_finished
        if steps and not is_over and not run.status.is_finished:
            steps = {name: one for name, one in steps.items() if one != ExecutionStatus.FAILED}
        return status, steps

    def get_step_run_metadata(self, info: StepRunInfo) -> dict[str, MetadataType]:
        """The parent's metadata, and this step's attempts with their memory."""
        from zenml_ext.kubernetes.step.entrypoint import step_metadata

        return {**super().get_step_run_metadata(info), **step_metadata(info.step_run_id)}

    # -- shared -------------------------------------------------------------------------------

    def _api(self) -> KubeApi:
        return KubeApi(
            self._k8s_batch_api,
            self._k8s_core_api,
            self.config.kubernetes_namespace,
            self.config.api_request_timeout,
        )

    @functools.cached_property
    def _known(self) -> dict[str, StepFacts]:
        return {}

    @functools.cached_property
    def _supervisor(self) -> Supervisor:
        known = self._known
        return Supervisor(lambda name: known[name])

    def _learn(self, name: str, pipeline: str, source: Any) -> StepFacts:
        """What is configured for a step, from its step run or what it is submitted with."""
        from zenml.config.step_configurations import Step

        config = source.config
        facts = self._known[name] = StepFacts(
            name=name,
            pipeline=pipeline,
            step=Step(spec=source.spec, config=config, step_config_overrides=config),
            settings=cast("KubernetesOomSettings", self.get_settings(source)),
        )
        return facts


def protected(settings: KubernetesOomSettings, *, is_dynamic: bool) -> KubernetesPodSettings:
    """The orchestrator's pod with a memory request that equals its limit; the user's own decides.

    Inline steps of a dynamic pipeline run in that pod, and nobody knows what they need: it has
    no limit but one that the user gave.
    """
    pod = settings.orchestrator_pod_settings or KubernetesPodSettings()
    given = copy.deepcopy(dict(pod.resources or {}))
    limits, requests = dict(given.get("limits") or {}), dict(given.get("requests") or {})
    asked = limits.get("memory") or requests.get("memory") or settings.orchestrator_memory
    requests["memory"] = asked or _ORCHESTRATOR_MEMORY
    if "memory" in limits or settings.orchestrator_memory or not is_dynamic:
        limits["memory"] = requests["memory"]
    requests.setdefault("cpu", limits.get("cpu") or settings.orchestrator_cpu)
    own = {"name": POD_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    changes = {
        "resources": {**given, "requests": requests, **({"limits": limits} if limits else {})},
        "env": [*(one for one in pod.env if one.get("name") != POD_VARIABLE), own],
    }
    return pod.model_copy(update=changes)


def step_pod(settings: KubernetesOomSettings, container: Any) -> KubernetesPodSettings:
    """A step's pod with its memory, its temporary directory, and its /dev/shm."""
    pod = settings.pod_settings or KubernetesPodSettings()
    volumes, mounts, env = [*pod.volumes], [*pod.volume_mounts], [*pod.env]
    for parts in (temp_dir_parts(settings.temp_dir), shm_parts(settings.shm_size)):
        taken = {one.get("name") for one in volumes} & {one["name"] for one in parts["volumes"]}
        if not taken:
            volumes += parts["volumes"]
            mounts += parts["volume_mounts"]
            env += [one for one in parts["env"] if one not in env]
    if settings.retry_memory_error and _RETRY_MEMORY_ERROR not in env:
        env.append(_RETRY_MEMORY_ERROR)
    resources = _resources(settings, container, pod.resources)
    changes = {"resources": resources, "volumes": volumes, "volume_mounts": mounts, "env": env}
    return pod.model_copy(deep=True).model_copy(update=changes)


def _resources(
    settings: KubernetesOomSettings, container: Any, given: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str]]:
    """The step's resources: what the pod settings say, else what the step asks for.

    A memory limit without a request gets the same as its request; a request without a limit the
    same as its limit, so that a step that outgrows it ends alone.
    """
    resources = {section: dict(values) for section, values in (given or {}).items()}
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    limit, request = limits.get("memory"), requests.get("memory")
    if limit is None and request is None:
        asked = request_of(settings, container)
        limit = request = str(asked) if asked else None
    elif settings.memory:
        limit = request = str(Quantity.parse(settings.memory))
    for section, value in (("limits", limit or request), ("requests", request or limit)):
        if value is not None:
            resources[section] = {**resources.get(section, {}), "memory": value}
    return resources
