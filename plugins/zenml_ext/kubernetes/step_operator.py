"""ZenML's Kubernetes step operator whose steps survive out-of-memory, under any orchestrator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from zenml.integrations.kubernetes.step_operators import KubernetesStepOperator

from zenml_ext.kubernetes.settings import KubernetesOomStepOperatorSettings
from zenml_ext.kubernetes.steps import SupervisedSteps

if TYPE_CHECKING:
    from zenml.config.base_settings import BaseSettings
    from zenml.config.step_run_info import StepRunInfo
    from zenml.enums import ExecutionStatus
    from zenml.models import StepRunResponse


class KubernetesOomStepOperator(SupervisedSteps, KubernetesStepOperator):
    """ZenML's Kubernetes step operator; a step killed for memory runs again with more.

    The process that waits for the step, its orchestrator's, supervises it.
    """

    @property
    def settings_class(self) -> type[BaseSettings]:
        """The settings class."""
        return cast("type[BaseSettings]", KubernetesOomStepOperatorSettings)

    def submit_with_allocation(self, info: StepRunInfo, *args: Any, **kwargs: Any) -> None:
        """Submit a step under supervision (ZenML 0.98 and later)."""
        with self._submitting(info):
            super().submit_with_allocation(info, *args, **kwargs)

    def submit(self, info: StepRunInfo, *args: Any, **kwargs: Any) -> None:
        """Submit a step under supervision (earlier versions of ZenML)."""
        with self._submitting(info):
            super().submit(info, *args, **kwargs)

    def get_status(self, step_run: StepRunResponse) -> ExecutionStatus:
        """The state of a step, of whatever Jobs it took."""
        return self._status_of(step_run)

    def cancel(self, step_run: StepRunResponse) -> None:
        """Delete every Job of the step that is not finished."""
        self._stop(step_run)
