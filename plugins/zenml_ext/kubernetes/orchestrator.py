"""ZenML's Kubernetes orchestrator whose steps survive out-of-memory."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, cast

from zenml.enums import ExecutionStatus
from zenml.integrations.kubernetes.orchestrators import KubernetesOrchestrator
from zenml.integrations.kubernetes.pod_settings import KubernetesPodSettings

from zenml_ext.kubernetes.objects.job import POD_VARIABLE
from zenml_ext.kubernetes.settings import KubernetesOomConfig, KubernetesOomSettings
from zenml_ext.kubernetes.steps import SupervisedSteps

if TYPE_CHECKING:
    from zenml.config.base_settings import BaseSettings
    from zenml.config.step_run_info import StepRunInfo
    from zenml.models import PipelineRunResponse, StepRunResponse
    from zenml.orchestrators import SubmissionResult

_STATIC_ENTRYPOINT = "kubernetes_orchestrator_entrypoint"
_OWN_ENTRYPOINT = "zenml_ext.kubernetes.supervisor.entrypoint"
_DYNAMIC_ENTRYPOINTS = {
    "zenml.pipelines.dynamic.entrypoint_configuration.DynamicPipelineEntrypointConfiguration": (
        "zenml_ext.kubernetes.dynamic.DynamicEntrypointConfiguration"
    )
}
ORCHESTRATOR_MEMORY = "600Mi"


class KubernetesOomOrchestrator(SupervisedSteps, KubernetesOrchestrator):
    """ZenML's Kubernetes orchestrator; steps killed for memory run again with more."""

    @property
    def config(self) -> KubernetesOomConfig:
        """The configuration."""
        return cast("KubernetesOomConfig", self._config)

    @property
    def settings_class(self) -> type[BaseSettings]:
        """The settings class."""
        return cast("type[BaseSettings]", KubernetesOomSettings)

    # -- settings -----------------------------------------------------------------------------

    def get_settings(self, container: Any) -> BaseSettings:
        """The settings; for a snapshot with the memory of the orchestrator's pod."""
        settings = super().get_settings(container)
        if not hasattr(container, "is_dynamic") or not isinstance(settings, KubernetesOomSettings):
            return settings
        if not settings.protect_orchestrator:
            return settings
        pod = protected(settings, is_dynamic=container.is_dynamic)
        changed = settings.model_copy(update={"orchestrator_pod_settings": pod})
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

    def get_isolated_step_status(self, step_run: StepRunResponse) -> ExecutionStatus:
        """The state of a dynamic pipeline's step, of whatever Jobs it took."""
        return self._status_of(step_run)

    def stop_isolated_step(self, step_run: StepRunResponse) -> None:
        """Delete every Job of the step that is not finished."""
        self._stop(step_run)

    # -- the client's view ----------------------------------------------------------------------

    def fetch_status(self, run: PipelineRunResponse, include_steps: bool = False) -> Any:  # noqa: FBT001, FBT002 - the parent's signature
        """Like the parent's, but a failed Job that may be retried is not shown as a failed step.

        The orchestrator's own process publishes final failures.
        """
        status, steps = super().fetch_status(run, include_steps=include_steps)
        is_over = status is not None and status.is_finished
        if steps and not is_over and not run.status.is_finished:
            steps = {name: one for name, one in steps.items() if one != ExecutionStatus.FAILED}
        return status, steps


def protected(settings: KubernetesOomSettings, *, is_dynamic: bool) -> KubernetesPodSettings:
    """The orchestrator's pod with a memory request equal to its limit; the user's settings win.

    Inline steps of a dynamic pipeline run in that pod, and nobody knows what they need: it has
    no limit but one that the user gave.
    """
    pod = settings.orchestrator_pod_settings or KubernetesPodSettings()
    given = copy.deepcopy(dict(pod.resources or {}))
    limits, requests = dict(given.get("limits") or {}), dict(given.get("requests") or {})
    asked = limits.get("memory") or requests.get("memory") or settings.orchestrator_memory
    requests["memory"] = asked or ORCHESTRATOR_MEMORY
    if "memory" in limits or settings.orchestrator_memory or not is_dynamic:
        limits["memory"] = requests["memory"]
    own = {"name": POD_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}
    changes = {
        "resources": {**given, "requests": requests, **({"limits": limits} if limits else {})},
        "env": [*(one for one in pod.env if one.get("name") != POD_VARIABLE), own],
    }
    return pod.model_copy(update=changes)
