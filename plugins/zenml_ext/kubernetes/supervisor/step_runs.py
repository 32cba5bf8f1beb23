"""ZenML's side of a step: its configuration, its step run, its run's state, its records.

Nothing here may fail a step: what ZenML's server cannot answer now is asked again later.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus

from mlops_ext.memory import Caps, MemoryPlan, MemoryPolicy, Quantity
from mlops_ext.redaction import redacted
from zenml_ext.memory import records as metadata
from zenml_ext.memory.policy import features_of, policy_for, request_of, task_key, without_limit
from zenml_ext.memory.records import KILLED, AttemptRecord

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step

    from zenml_ext.kubernetes.flavor import KubernetesOomSettings

__all__ = ["Book", "StepFacts", "StepRow"]

log = logging.getLogger(__name__)

_STOPPING = frozenset({ExecutionStatus.STOPPING, ExecutionStatus.STOPPED})
_STARTED = frozenset({ExecutionStatus.RUNNING, ExecutionStatus.PROVISIONING})
_ENDED = 'oneof:["completed","failed"]'
_HISTORY = 30
"""Earlier runs of a step that a plan looks at: one page of the server's answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """What is configured for a step.

    Attributes:
        name: its name in the pipeline.
        pipeline: name of the pipeline.
        step: ZenML's configuration of it.
        settings: its orchestrator settings.
    """

    name: str
    pipeline: str
    step: Step
    settings: KubernetesOomSettings

    @property
    def family(self) -> str:
        """The step's code; invocations of one function are one family."""
        key = task_key(self.pipeline, self.step)
        source = getattr(self.step.spec.source, "import_path", self.name)
        return f"{source}:{key.version}"[:200]

    @property
    def policy(self) -> MemoryPolicy:
        """The memory policy that its settings name."""
        return policy_for(self.settings)

    @property
    def max_memory(self) -> Quantity | None:
        """The user's cap."""
        text = self.settings.max_memory
        return Quantity.parse(text) if text else None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """The newest step run of a step.

    Attributes:
        identifier: its id.
        status: its status.
    """

    identifier: UUID
    status: ExecutionStatus

    @property
    def can_be_adopted(self) -> bool:
        """Whether a killed attempt has left it for the next one to go on with."""
        return self.status in _STARTED

    @property
    def is_over(self) -> bool:
        """Whether ZenML has it as failed for good, or as done."""
        retried = {ExecutionStatus.RETRIED, getattr(ExecutionStatus, "RETRYING", None)}
        return self.status.is_finished and self.status not in retried


class Book:
    """Reads and writes ZenML's records for the supervisor."""

    def plan(self, facts: StepFacts, run_id: UUID | None) -> MemoryPlan | None:
        """The memory plan of a step about to start; None where it is left as it is."""
        request = request_of(facts.settings, facts.step) or _limit_in(facts.settings)
        left_alone = without_limit(facts.settings, request)
        if left_alone is not None:
            return left_alone
        policy = facts.policy
        key = task_key(facts.pipeline, facts.step)
        features = features_of(run_id, facts.step)
        for attempt in self.history(facts):
            size = attempt.peak if attempt.completed else attempt.memory or attempt.peak
            if size is not None:
                policy.observe(
                    key, features, size, attempt.runtime_s, censored=not attempt.completed
                )
        return policy.decide(key, features, request, Caps(max_memory=facts.max_memory))

    def history(self, facts: StepFacts) -> Sequence[AttemptRecord]:
        """Attempts of earlier runs of the step that tell its need, oldest first; none if unknown.

        Those that completed tell a peak; those that were killed for memory, also of a step that
        never got through, tell that it needs more than they had.
        """
        if not facts.policy.learns:
            return ()
        try:
            page = Client().list_run_steps(
                name=facts.name,
                sort_by="desc:created",
                size=_HISTORY,
                hydrate=True,
                status=_ENDED,
            )
            rows = [row for row in page.items if _pipeline_of(row) in {None, facts.pipeline}]
        except Exception as error:  # noqa: BLE001 - a hint: the server's hiccup must not fail a step
            log.debug("no history of %s: %s", facts.name, redacted(error))
            return ()
        return [
            attempt
            for row in reversed(rows)
            for attempts in metadata.read([row]).values()
            for attempt in attempts
            if attempt.completed or attempt.outcome == KILLED
        ]

    def newest_row(self, run_id: str, step_name: str) -> StepRow | None:
        """The step's newest step run in a pipeline run, or None where it has none."""
        page = Client().list_run_steps(
            name=step_name, pipeline_run_id=UUID(run_id), sort_by="desc:version", size=1
        )
        return StepRow(identifier=page[0].id, status=page[0].status) if page.total else None

    def row(self, step_run_id: str) -> StepRow:
        """A step run by its id."""
        found = Client().get_run_step(UUID(step_run_id), hydrate=False)
        return StepRow(identifier=found.id, status=found.status)

    def is_stopping(self, run_id: str) -> bool:
        """Whether the run is being stopped, or has been."""
        run = Client().get_pipeline_run(UUID(run_id), hydrate=False)
        return run.status in _STOPPING

    def beat(self, row: StepRow) -> bool:
        """Keep the step run alive while no pod does; False where it needs no heartbeat."""
        store: Any = Client().zen_store
        extra: dict[str, Any] = {}
        if (
            "heartbeat_liveness_timeout_seconds"
            in inspect.signature(store.update_step_heartbeat).parameters
        ):
            extra["heartbeat_liveness_timeout_seconds"] = 315
        answer = store.update_step_heartbeat(step_run_id=row.identifier, **extra)
        return bool(getattr(answer, "heartbeat_enabled", True))

    def record(
        self,
        run_id: str,
        step_name: str,
        row: StepRow | None,
        attempts: Sequence[Mapping[str, Any]],
    ) -> None:
        """Write a step's attempts to its step run and to the run."""
        records = [AttemptRecord.load(attempt) for attempt in attempts]
        if row is not None:
            metadata.record(row.identifier, records)
        metadata.record_on_run(UUID(run_id), step_name, records)


def _limit_in(settings: KubernetesOomSettings) -> Quantity | None:
    """A memory limit that the user wrote into the pod settings."""
    resources = settings.pod_settings.resources if settings.pod_settings else {}
    text = (resources.get("limits") or {}).get("memory")
    return Quantity.parse(text) if text else None


def _pipeline_of(row: Any) -> str | None:
    pipeline = getattr(row, "pipeline", None) or getattr(row.resources, "pipeline", None)
    return cast("str | None", getattr(pipeline, "name", None))
