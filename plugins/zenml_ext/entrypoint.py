"""The entrypoint of a step that may have begun before: it resumes the step run left RUNNING.

A process that is killed for memory cannot say so: its step run stays RUNNING on the server. A
second process that took the normal path would ask for a second step run, which the server
refuses once the user's own retries are used up (``EntityExistsError``), and which would use one
of them up. This one goes on with the same step run.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from uuid import UUID

from zenml.client import Client
from zenml.constants import ENV_ZENML_STEP_OPERATOR
from zenml.entrypoints.step_entrypoint_configuration import StepEntrypointConfiguration
from zenml.enums import ExecutionStatus
from zenml.exceptions import RunStoppedException
from zenml.orchestrators import publish_utils
from zenml.orchestrators.signal_handler import SignalHandler
from zenml.step_operators.step_operator_entrypoint_configuration import (
    STEP_RUN_ID_OPTION,
    StepOperatorEntrypointConfiguration,
)

from mlops_ext.settings import environment

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step
    from zenml.models import PipelineSnapshotResponse, StepRunResponse

log = logging.getLogger(__name__)

STARTED = frozenset({ExecutionStatus.RUNNING, ExecutionStatus.PROVISIONING})
# By value: not every supported version knows all of them.
_STOPPING = frozenset({"stopping", "stopped", "cancelling", "cancelled"})


def is_stopping(status: ExecutionStatus) -> bool:
    """Whether a run or a step run is being stopped, or has been."""
    return status.value in _STOPPING


class ResumingEntrypointConfiguration(StepOperatorEntrypointConfiguration):
    """Runs a step under the step run named by ``--step_run_id``, else as ZenML does.

    What is found decides: a step run that is RUNNING (in a dynamic pipeline also one that is
    PROVISIONING) is resumed; one that was successful needs nothing more; one that is being
    stopped stays so; after any other the normal path makes the next one.
    """

    @classmethod
    def get_entrypoint_options(cls) -> dict[str, bool]:
        """The parent's options; the step run's id may be left out."""
        return {**super().get_entrypoint_options(), STEP_RUN_ID_OPTION: False}

    @property
    def step(self) -> Step:
        """The step: from the step run in a dynamic pipeline, else from the snapshot."""
        if self.snapshot.is_dynamic:
            return super().step
        found: Step = StepEntrypointConfiguration.step.fget(self)  # type: ignore[attr-defined]  # a property
        return found

    def _run_step(self, step: Step, snapshot: PipelineSnapshotResponse) -> None:
        found = self._previous()
        if found is not None and found.status.is_successful:
            log.info("Step %s has completed already, as step run %s.", found.name, found.id)
        elif found is not None and is_stopping(found.status):
            raise RunStoppedException(f"Step run {found.id} is being stopped.")
        elif found is not None and found.status in STARTED:
            self._resume(found, step, snapshot)
        else:
            super(StepOperatorEntrypointConfiguration, self)._run_step(step, snapshot)

    def _resume(
        self, found: StepRunResponse, step: Step, snapshot: PipelineSnapshotResponse
    ) -> None:
        """Run *step* under *found*, with what ZenML's launcher does around a step."""
        log.info("Step %s goes on as step run %s.", found.name, found.id)
        handler = SignalHandler(
            step_run=found, execution_mode=snapshot.pipeline_configuration.execution_mode
        )
        handler.register()
        try:
            if step.config.step_operator and ENV_ZENML_STEP_OPERATOR not in environment():
                _wait_for_operator(found, step)
            else:
                super()._run_step(step=step, snapshot=snapshot)
        except RunStoppedException:
            raise
        except BaseException:
            # ZenML's step runner says so itself, unless it failed before it reached the step.
            if Client().get_run_step(found.id, hydrate=False).status in STARTED:
                publish_utils.publish_failed_step_run(found.id)
            raise
        finally:
            handler.unregister()

    def _previous(self) -> StepRunResponse | None:
        identifier = self.entrypoint_args.get(STEP_RUN_ID_OPTION)
        return Client().get_run_step(UUID(identifier)) if identifier else None


def _wait_for_operator(found: StepRunResponse, step: Step) -> None:
    """Wait for the step operator's pod, which outlives the process that waited for it before."""
    operator = operator_of(Client().active_stack, step)
    status = operator.wait(found)
    if not status.is_successful:
        raise RuntimeError(f"Step {found.name} ended with status {status.value}.")
    if getattr(step.config, "command", None) is not None:  # nobody else publishes a command's end
        publish_utils.publish_successful_step_run(step_run_id=found.id, output_artifact_ids={})


def operator_of(stack: Any, step: Step) -> Any:
    """The step operator of *stack* that runs *step*; a stack has but one in older versions."""
    return getattr(stack, "step_operators", {}).get(step.config.step_operator, stack.step_operator)
