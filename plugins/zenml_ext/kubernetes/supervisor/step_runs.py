"""Reads and writes a step's ZenML records: step run, run state, heartbeat, attempt metadata.

Nothing here may fail a step: what ZenML's server cannot answer now is asked again later.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.orchestrators import publish_utils

from mlops_ext.errors import MlopsExtError
from mlops_ext.memory import Features, MemoryPlan
from mlops_ext.redaction import redacted
from zenml_ext.entrypoint import STARTED, is_stopping
from zenml_ext.kubernetes.objects.job import run_id_of, step_name_of
from zenml_ext.memory import records
from zenml_ext.memory.attempts import AttemptRecord
from zenml_ext.memory.history import plan_from_server
from zenml_ext.memory.policy import StepFacts, features_of
from zenml_ext.server import may_pass

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRun:
    """The newest step run of a step.

    Attributes:
        identifier: its id.
        status: its status.
    """

    identifier: UUID
    status: ExecutionStatus

    @property
    def can_be_resumed(self) -> bool:
        """Whether a killed attempt has left it for the next one to go on with."""
        return self.status in STARTED

    @property
    def is_over(self) -> bool:
        """Whether ZenML lists it as completed, or as failed with no retry left."""
        retried = {ExecutionStatus.RETRIED, getattr(ExecutionStatus, "RETRYING", None)}
        return self.status.is_finished and self.status not in retried


class ServerAwayError(MlopsExtError):
    """ZenML's server does not answer now; the caller asks again at the next poll."""


class ServerRefusesError(MlopsExtError):
    """ZenML's server would answer the same again: what was asked for is gone, or not allowed."""


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """Inside, what a store raises is one of the two errors above, without what is secret."""
    try:
        yield
    except Exception as error:
        if may_pass(error):
            words = f"ZenML's server does not answer now ({redacted(error)})"
            raise ServerAwayError(words) from error
        raise ServerRefusesError(f"ZenML's server refuses ({redacted(error)})") from error


class StepRuns:
    """Reads and writes ZenML's records for the supervisor."""

    def features(self, facts: StepFacts, run_id: UUID | None) -> Features:
        """What is known of a step about to start."""
        return features_of(run_id, facts.step)

    def plan(self, facts: StepFacts, features: Features) -> MemoryPlan:
        """The memory plan of a step about to start."""
        return plan_from_server(facts, features)

    @asking()
    def newest(self, run_id: str, step_name: str) -> StepRun | None:
        """The step's newest step run in a pipeline run, or None where it has none."""
        page = Client().list_run_steps(
            name=step_name, pipeline_run_id=UUID(run_id), sort_by="desc:version", size=1
        )
        return StepRun(identifier=page[0].id, status=page[0].status) if page.total else None

    @asking()
    def by_id(self, step_run_id: str) -> StepRun:
        """A step run by its id."""
        found = Client().get_run_step(UUID(step_run_id), hydrate=False)
        return StepRun(identifier=found.id, status=found.status)

    @asking()
    def is_stopping(self, run_id: str) -> bool:
        """Whether the run is being stopped, or has been."""
        run = Client().get_pipeline_run(UUID(run_id), hydrate=False)
        return is_stopping(run.status)

    @asking()
    def publish_stopped(self, step_run: StepRun) -> None:
        """Mark a step run as stopped: the pod that would have done so never started."""
        publish_utils.publish_stopped_step_run(step_run.identifier)

    def heartbeat(self, step_run: StepRun) -> bool:
        """Keep the step run alive while no pod does; False if it needs no heartbeat."""
        store: Any = Client().zen_store
        extra: dict[str, Any] = {}
        if (
            "heartbeat_liveness_timeout_seconds"
            in inspect.signature(store.update_step_heartbeat).parameters
        ):
            extra["heartbeat_liveness_timeout_seconds"] = 315
        answer = store.update_step_heartbeat(step_run_id=step_run.identifier, **extra)
        return bool(getattr(answer, "heartbeat_enabled", True))

    def record(
        self,
        run_id: str,
        step_name: str,
        step_run: StepRun | None,
        attempts: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write a step's attempts to its step run and to the run."""
        loaded = [AttemptRecord.load(attempt) for attempt in attempts]
        if step_run is not None:
            records.record(step_run.identifier, loaded)
        records.record_on_run(UUID(run_id), step_name, loaded)


def step_run_of(step_runs: StepRuns, job: Mapping[str, Any]) -> StepRun | None:
    """The step run that a step's Job works on; None if there is none yet."""
    step_run_id = (job["metadata"].get("labels") or {}).get("step_run_id")
    if step_run_id:
        return step_runs.by_id(step_run_id)
    return step_runs.newest(run_id_of(job), step_name_of(job))
