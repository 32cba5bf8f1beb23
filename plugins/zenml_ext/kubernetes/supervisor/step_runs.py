"""Reads and writes a step's ZenML records: step run, run state, heartbeat, attempt metadata.

Nothing here may fail a step: what ZenML's server cannot answer now is asked again later.
"""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.orchestrators import publish_utils

from mlops_ext.memory import Caps, Features, MemoryPlan, MemoryPolicy, Quantity
from mlops_ext.redaction import redacted
from zenml_ext.entrypoint import STARTED, is_stopping
from zenml_ext.kubernetes.objects.job import run_id_of, step_name_of
from zenml_ext.memory import records
from zenml_ext.memory.attempts import KILLED, AttemptRecord
from zenml_ext.memory.policy import (
    features_of,
    function_of,
    policy_for,
    request_of,
    task_key,
    without_limit,
)

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step

    from zenml_ext.kubernetes.settings import KubernetesOomSettings

log = logging.getLogger(__name__)

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
    def version(self) -> str:
        """The step's code, as its history tells versions apart."""
        return task_key(self.pipeline, self.step).version

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
        """Whether ZenML has it as failed for good, or as done."""
        retried = {ExecutionStatus.RETRIED, getattr(ExecutionStatus, "RETRYING", None)}
        return self.status.is_finished and self.status not in retried


class StepRuns:
    """Reads and writes ZenML's records for the supervisor."""

    def features(self, facts: StepFacts, run_id: UUID | None) -> Features:
        """What is known of a step about to start."""
        return features_of(run_id, facts.step)

    def plan(self, facts: StepFacts, features: Features) -> MemoryPlan | None:
        """The memory plan of a step about to start; None if it is left as it is.

        ZenML's server keeps what earlier runs needed, so the history of the policy that learns is
        made from it each time: a file in a pod is lost, and one on a shared volume would be told
        the same runs again by every orchestrator.
        """
        request = request_of(facts.settings, facts.step) or _limit_in(facts.settings)
        left_alone = without_limit(facts.settings, request)
        if left_alone is not None:
            return left_alone
        policy, grows = _with_records_of_its_own(facts.policy), False
        key = task_key(facts.pipeline, facts.step)
        for attempt in self.history(facts):
            size = attempt.peak if attempt.completed else attempt.memory or attempt.peak
            if size is not None:
                policy.observe(
                    replace(key, version=attempt.version),
                    Features(input_bytes=attempt.input_bytes),
                    size,
                    attempt.runtime_s,
                    censored=not attempt.completed,
                    curve=attempt.curve,
                    resizes_s=[s if s >= 0 else math.inf for s in attempt.resizes_s],
                )
                grows = grows or any(s >= 0 for s in attempt.resizes_s)
        plan = policy.decide(key, features, request, Caps(max_memory=facts.max_memory))
        if plan.in_place and plan.first_limit and not grows:
            # Nothing shows that pods can grow here, and a low start would be a sure kill.
            plan = replace(plan, in_place=replace(plan.in_place, start=plan.first_limit))
        log.info("Step %s: %s", facts.name, plan.reason)
        return plan

    def history(self, facts: StepFacts) -> Sequence[AttemptRecord]:
        """Attempts of earlier runs of the step that tell its need, oldest first; none if unknown.

        Those that completed tell a peak; those that were killed for memory, also of a step that
        never got through, tell that it needs more than they had.
        """
        if not facts.policy.learns:
            return ()
        try:
            page = Client().list_run_steps(
                name=f"contains:{function_of(facts.step)}",
                sort_by="desc:created",
                size=_HISTORY,
                hydrate=True,
                status=_ENDED,
            )
            rows = [
                step_run
                for step_run in page.items
                if _pipeline_of(step_run) in {None, facts.pipeline}
                and function_of(step_run, step_run.name) == function_of(facts.step)
            ]
        except Exception as error:  # noqa: BLE001 - a hint: the server's hiccup must not fail a step
            log.debug("no history of %s: %s", facts.name, redacted(error))
            return ()
        return [
            attempt
            for step_run in reversed(rows)
            for attempts in records.read([step_run]).values()
            for attempt in attempts
            if attempt.completed or attempt.outcome == KILLED
        ]

    def newest(self, run_id: str, step_name: str) -> StepRun | None:
        """The step's newest step run in a pipeline run, or None where it has none."""
        page = Client().list_run_steps(
            name=step_name, pipeline_run_id=UUID(run_id), sort_by="desc:version", size=1
        )
        return StepRun(identifier=page[0].id, status=page[0].status) if page.total else None

    def by_id(self, step_run_id: str) -> StepRun:
        """A step run by its id."""
        found = Client().get_run_step(UUID(step_run_id), hydrate=False)
        return StepRun(identifier=found.id, status=found.status)

    def is_stopping(self, run_id: str) -> bool:
        """Whether the run is being stopped, or has been."""
        run = Client().get_pipeline_run(UUID(run_id), hydrate=False)
        return is_stopping(run.status)

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


def _with_records_of_its_own(policy: MemoryPolicy) -> MemoryPolicy:
    """*policy*; the one that learns with an empty history, to be filled from ZenML's server."""
    if not policy.learns:
        return policy
    try:
        from mlops_ext.memory.history import HistoryPolicy, InMemoryHistory
    except ImportError:  # without NumPy
        return policy
    if not isinstance(policy, HistoryPolicy):
        return policy
    return HistoryPolicy(records=InMemoryHistory(), settings=policy.settings)


def _limit_in(settings: KubernetesOomSettings) -> Quantity | None:
    """A memory limit that the user wrote into the pod settings."""
    resources = settings.pod_settings.resources if settings.pod_settings else {}
    text = (resources.get("limits") or {}).get("memory")
    return Quantity.parse(text) if text else None


def _pipeline_of(step_run: Any) -> str | None:
    pipeline = getattr(step_run, "pipeline", None) or getattr(step_run.resources, "pipeline", None)
    return cast("str | None", getattr(pipeline, "name", None))
