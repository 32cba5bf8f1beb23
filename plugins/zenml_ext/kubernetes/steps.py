"""Steps that a process submits as Jobs and then asks about: a dynamic pipeline's, an operator's.

What the orchestrator and the step operator share. Both make a step's Job as ZenML does, on an API
object that puts the memory plan into it, and find it again by its step run.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import importlib.metadata
import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.integrations.kubernetes import KubernetesIntegration, kube_utils
from zenml.integrations.kubernetes.pod_settings import KubernetesPodSettings
from zenml.stack import StackComponent

from zenml_ext.kubernetes.client import UNANSWERED, KubeApi, describe_api_error
from zenml_ext.kubernetes.objects.job import is_finished, latest_jobs, superseding_patch
from zenml_ext.kubernetes.objects.volumes import shm_parts, temp_dir_parts
from zenml_ext.kubernetes.settings import KubernetesSettings
from zenml_ext.kubernetes.supervisor.supervisor import Supervisor
from zenml_ext.memory.exits import RETRY_MEMORY_ERROR
from zenml_ext.memory.policy import StepFacts

if TYPE_CHECKING:
    from zenml.config.base_settings import BaseSettings
    from zenml.config.step_run_info import StepRunInfo
    from zenml.metadata.metadata_types import MetadataType
    from zenml.models import StepRunResponse

log = logging.getLogger(__name__)

_DISTRIBUTION = "mlops-ext"
# What ZenML's check of a Job is told, and the setting that holds it.
_CHECK_OPTIONS = {
    "api_request_timeout": "api_request_timeout",
    "max_retries": "max_api_retries",  # of ZenML 0.96 and later
    "fail_on_container_waiting_reasons": "fail_on_container_waiting_reasons",
}
_RETRY_MEMORY_ERROR = {"name": RETRY_MEMORY_ERROR, "value": "1"}


# The step that this thread submits.
_submitted: contextvars.ContextVar[Any] = contextvars.ContextVar("submitted", default=None)


class _PlanningApi:
    """The API object of Jobs; the one that is created gets what *prepare* makes of it."""

    def __init__(self, api: Any, prepare: Callable[[Any], Any]) -> None:
        self._api, self._prepare = api, prepare

    def __getattr__(self, name: str) -> Any:
        return getattr(self._api, name)

    def create_namespaced_job(self, namespace: str, body: Any, **options: Any) -> Any:
        """Create *body*, prepared."""
        body = self._prepare(body)
        return self._api.create_namespaced_job(namespace=namespace, body=body, **options)


class SupervisedSteps(StackComponent):
    """Beside ZenML's class for a component that submits steps: they run again with more memory."""

    @property
    def requirements(self) -> set[str]:
        """What an image needs: the parent's requirements and this distribution.

        ZenML looks requirements up by the module of a component's class, and finds none for a
        class that lives elsewhere.
        """
        parents = KubernetesIntegration.get_requirements()
        return {*super().requirements, *parents, self.mlops_ext_requirement}

    @property
    def mlops_ext_requirement(self) -> str:
        """What pip installs as this distribution."""
        config: Any = self.config
        version = importlib.metadata.version(_DISTRIBUTION)
        return config.mlops_ext_requirement or f"{_DISTRIBUTION}[zenml]=={version}"

    def get_settings(self, container: Any) -> BaseSettings:
        """The settings; for a step with its temporary directory in the pod's."""
        settings = super().get_settings(container)
        is_step = hasattr(container, "config") and hasattr(container, "spec")
        if not is_step or not isinstance(settings, KubernetesSettings):
            return settings
        changed = settings.model_copy(update={"pod_settings": step_pod(settings)})
        return cast("BaseSettings", changed)

    def get_step_run_metadata(self, info: StepRunInfo) -> dict[str, MetadataType]:
        """The parent's metadata, and this step's attempts with their memory."""
        from zenml_ext.kubernetes.step.entrypoint import step_metadata

        return {**super().get_step_run_metadata(info), **step_metadata(info.step_run_id)}

    @property
    def _k8s_batch_api(self) -> Any:
        """ZenML's API object; while this thread submits a step, one that plans its memory."""
        parent: Any = super()
        info = _submitted.get()
        api = parent._k8s_batch_api  # noqa: SLF001 - the parent's own
        return _PlanningApi(api, functools.partial(self._prepare, info)) if info else api

    @contextlib.contextmanager
    def _submitting(self, info: StepRunInfo) -> Iterator[None]:
        token = _submitted.set(info)
        try:
            yield
        finally:
            _submitted.reset(token)

    def _prepare(self, info: StepRunInfo, manifest: Any) -> Any:
        plain = self.kube_api().plain(manifest)
        if plain["spec"].get("completions", 1) > 1:  # its pods find each other by the Job's name
            return manifest
        facts = self._learn(info.pipeline_step_name, info.pipeline.name, info)
        return self._supervisor.prepare(plain, facts, str(info.run_id))

    def _status_of(self, step_run: StepRunResponse) -> ExecutionStatus:
        """The state of a step, of whatever Jobs it took."""
        api = self.kube_api()
        try:
            jobs = api.jobs(f"step_run_id={step_run.id}")
        except UNANSWERED as error:
            log.warning("Step run %s: %s; asking again.", step_run.id, describe_api_error(error))
            return ExecutionStatus.RUNNING
        current, superseded = latest_jobs(jobs)
        if not current:
            log.warning("No Job for step run %s: somebody deleted it.", step_run.id)
            return ExecutionStatus.FAILED
        for job in superseded:
            with contextlib.suppress(*UNANSWERED):
                api.patch_job(job["metadata"]["name"], superseding_patch(job))
        if step_run.name not in self._known:
            run = Client().get_pipeline_run(step_run.pipeline_run_id, hydrate=False)
            self._learn(step_run.name, run.pipeline.name if run.pipeline else "", step_run)
        settings, config = self._known[step_run.name].settings, self.config
        known = {
            option: getattr(settings, field, getattr(config, field, None))
            for option, field in _CHECK_OPTIONS.items()
        }
        status, message = self._supervisor.check(
            batch_api=api.batch,
            core_api=api.core,
            namespace=api.namespace,
            job_name=current[0]["metadata"]["name"],
            **{option: value for option, value in known.items() if value is not None},
        )
        if status is kube_utils.JobStatus.FAILED:
            log.error("Step %s failed: %s", step_run.name, message)
            return ExecutionStatus.FAILED
        is_done = status is kube_utils.JobStatus.SUCCEEDED
        return ExecutionStatus.COMPLETED if is_done else ExecutionStatus.RUNNING

    def _stop(self, step_run: StepRunResponse) -> None:
        """Delete every Job of the step that is not finished, not the first found alone."""
        api = self.kube_api()
        try:
            for job in api.jobs(f"step_run_id={step_run.id}"):
                if not is_finished(job):
                    api.delete_job(job["metadata"]["name"])
                    log.info("Stopped step Job %s.", job["metadata"]["name"])
        except UNANSWERED as error:
            words = describe_api_error(error)
            log.warning("Step run %s could not be stopped: %s", step_run.id, words)

    def kube_api(self) -> KubeApi:
        """Its cluster's API, in its namespace."""
        config: Any = self.config
        parent: Any = super()
        batch, core = parent._k8s_batch_api, parent._k8s_core_api  # noqa: SLF001 - the parent's own
        return KubeApi(batch, core, config.kubernetes_namespace, config.api_request_timeout)

    @functools.cached_property
    def _known(self) -> dict[str, StepFacts]:
        return {}

    @functools.cached_property
    def _supervisor(self) -> Supervisor:
        return Supervisor(self._known.__getitem__)

    def _learn(self, name: str, pipeline: str, source: Any) -> StepFacts:
        """What is configured for a step, from its step run or what it is submitted with."""
        from zenml.config.step_configurations import Step

        config, settings = source.config, cast("KubernetesSettings", self.get_settings(source))
        step = Step(spec=source.spec, config=config, step_config_overrides=config)
        self._known[name] = StepFacts(name=name, pipeline=pipeline, step=step, settings=settings)
        return self._known[name]


def step_pod(settings: Any) -> KubernetesPodSettings:
    """A step's pod with its temporary directory and its /dev/shm."""
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
    changes = {"volumes": volumes, "volume_mounts": mounts, "env": env}
    return pod.model_copy(deep=True).model_copy(update=changes)
