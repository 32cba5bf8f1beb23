"""One step under `local_oom`: attempt after attempt, until it completes or may not go on."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.models import StepRunResponse
from zenml.orchestrators import publish_utils

from mlops_ext.memory import (
    Attempt,
    Cause,
    Evidence,
    Fail,
    Features,
    MemoryPlan,
    MemoryPolicy,
    Quantity,
    Retry,
)
from zenml_ext.entrypoint import STARTED
from zenml_ext.local import process
from zenml_ext.local.budget import MemoryBudget
from zenml_ext.local.dag import State
from zenml_ext.local.entrypoint import LocalEntrypoint
from zenml_ext.local.process import Termination
from zenml_ext.local.settings import LocalOomSettings
from zenml_ext.local.warm import WarmServer
from zenml_ext.memory.attempts import KILLED, AttemptRecord, in_our_words
from zenml_ext.memory.exits import MEMORY_ERROR
from zenml_ext.memory.policy import StepFacts
from zenml_ext.memory.records import record, record_on_run
from zenml_ext.server import when_there

log = logging.getLogger(__name__)

_ENTRYPOINT = f"{LocalEntrypoint.__module__}.{LocalEntrypoint.__qualname__}"


@dataclass(slots=True, kw_only=True)
class StepJob:
    """A step to run, with all that it takes.

    Attributes:
        name: its name in the pipeline.
        facts: what is configured for it.
        snapshot_id: the snapshot that holds its configuration.
        run_id: the pipeline run.
        environment: the whole environment of its processes.
        policy: decides about memory.
        plan: the policy's plan.
        features: what was known before the start.
        budget: memory shared with the steps that run beside it.
        stopping: set when the run is to end.
        step_run_id: the step run to use, where one exists before the start.
    """

    name: str
    facts: StepFacts
    snapshot_id: UUID
    run_id: UUID
    environment: Mapping[str, str]
    policy: MemoryPolicy
    plan: MemoryPlan
    features: Features
    budget: MemoryBudget
    stopping: threading.Event
    step_run_id: UUID | None = None
    attempts: list[AttemptRecord] = field(default_factory=list)
    oom_retries: int = 0
    failures: int = 0
    ended: State = State.RUNNING

    @property
    def _settings(self) -> LocalOomSettings:
        return cast("LocalOomSettings", self.facts.settings)

    def run(self) -> State:
        """Run the step to its end; afterwards no step run of it is left RUNNING."""
        memory, why, resume = self.plan.first_limit, self.plan.reason, self.step_run_id
        while True:
            with self.budget.share(memory, self.stopping):
                if self.stopping.is_set():
                    return self._close(State.STOPPED)
                termination = self._attempt(memory, resume)
            step_run = self._latest_step_run()
            # A kill can come between the publishing of the result and the end of the process.
            has_completed = step_run is not None and step_run.status == ExecutionStatus.COMPLETED
            if termination.exit_code == 0 or (termination.oom_killed and has_completed):
                if termination.oom_killed:
                    log.warning(
                        "Step %s completed, although one of its processes was killed for memory.",
                        self.name,
                    )
                self._note(memory, why, termination, "completed", step_run)
                self._observe(termination.peak, termination, censored=False)
                return State.COMPLETED
            if termination.stopped:
                self._note(memory, why, termination, "stopped", step_run)
                return self._close(State.STOPPED)
            evidence = Evidence(
                exit_code=termination.exit_code,
                oom_killed=termination.oom_killed,
                memory_error=termination.exit_code == MEMORY_ERROR,
                peak=termination.peak,
                node=socket.gethostname(),
            )
            tried = Attempt(memory=memory, oom_retries=self.oom_retries)
            decision = in_our_words(self.policy.on_failure(self.plan, tried, evidence))
            if decision.cause is Cause.OUT_OF_MEMORY:
                self._observe(memory or termination.peak, termination, censored=True)
            outcome = _OUTCOMES.get(decision.cause, "failed")
            self._note(memory, decision.reason, termination, outcome, step_run)
            if isinstance(decision, Fail):
                resume = None
                if not self._may_fail_again(decision, step_run):
                    return self._close(State.FAILED)
                continue
            self.oom_retries += isinstance(decision, Retry)
            memory, why = decision.memory, decision.reason
            resume = step_run.id if step_run is not None and step_run.status in STARTED else None

    def _attempt(self, memory: Quantity | None, resume: UUID | None) -> Termination:
        command = LocalEntrypoint.get_entrypoint_command()[1:]
        arguments = LocalEntrypoint.get_entrypoint_arguments(
            step_name=self.name,
            snapshot_id=self.snapshot_id,
            step_run_id=str(resume) if resume else "",
        )
        arguments[1] = _ENTRYPOINT  # ZenML names it by the client's source root otherwise
        return process.run(
            [sys.executable, *command, *arguments],
            environment=self.environment,
            limit=memory,
            stopping=self.stopping,
            grace_s=self._settings.stop_grace_s,
            kernel=self._settings.kernel_limit,
            warm=WarmServer.get(self.environment),
        )

    def _may_fail_again(self, decision: Fail, step_run: StepRunResponse | None) -> bool:
        """Whether the user's own retries allow another attempt; waits for their delay."""
        wanted = self.facts.step.config.retry
        allowed = wanted.max_retries if wanted else 0
        if step_run is not None and step_run.status in STARTED:
            when_there(lambda: publish_utils.publish_failed_step_run(step_run.id), "PUT")
        log.warning("Step %s: %s", self.name, decision.reason)
        if wanted is None or self.failures >= allowed or self.step_run_id is not None:
            return False
        delay = wanted.delay * wanted.backoff**self.failures
        self.failures += 1
        words = "Step %s is retried in %d s, as its retry configuration says (%d of %d)."
        log.info(words, self.name, delay, self.failures, allowed)
        return not self.stopping.wait(delay)

    def _observe(self, peak: Quantity | None, termination: Termination, *, censored: bool) -> None:
        """Tell the policy what an attempt has shown; a killed one needed at least *peak*."""
        if not peak or self.facts.is_elsewhere:
            return
        curve = () if censored else termination.curve
        try:
            self.policy.observe(
                self.facts.key,
                self.features,
                peak,
                termination.runtime_s,
                censored=censored,
                curve=curve,
                plan=self.plan,
            )
        except Exception:  # somebody else's policy: what it does not learn fails no step
            log.warning("the memory policy did not take note of %s", self.name, exc_info=True)

    def _note(
        self,
        memory: Quantity | None,
        reason: str,
        termination: Termination,
        outcome: str,
        step_run: StepRunResponse | None,
    ) -> None:
        """Add an attempt to the record, in one log line, and on the server."""
        done = outcome == "completed"
        attempt = AttemptRecord(
            number=len(self.attempts) + 1,
            memory=memory,
            peak=termination.peak,
            outcome=outcome,
            reason=reason,
            node=socket.gethostname(),
            runtime_s=termination.runtime_s,
            lost_s=0.0 if done else termination.runtime_s,
            input_bytes=self.features.known_input,
            version=self.facts.key.version,
        )
        self.attempts.append(attempt)
        log.log(
            logging.INFO if done else logging.WARNING,
            "Step %s, attempt %d with %s: %s after %.1f s, peak %s.%s",
            self.name,
            attempt.number,
            memory.human if memory else "no limit",
            outcome,
            termination.runtime_s,
            termination.peak.human if termination.peak else "not known",
            "" if done else f" {reason}",
        )
        if self.facts.is_elsewhere:
            return  # the work, and its record, are the step operator's
        if step_run is not None and step_run.status != ExecutionStatus.CACHED:
            record(step_run.id, self.attempts)
        if len(self.attempts) > 1 or not done:
            record_on_run(self.run_id, self.name, self.attempts)

    def _latest_step_run(self) -> StepRunResponse | None:
        """The latest step run of this step."""
        known = self.step_run_id
        if known is not None:
            return when_there(lambda: Client().get_run_step(known, hydrate=False), "GET")
        page = when_there(
            lambda: Client().list_run_steps(
                name=self.name, pipeline_run_id=self.run_id, sort_by="desc:created", size=1
            ),
            "GET",
        )
        return page[0] if page.total else None

    def _close(self, state: State) -> State:
        """Close the step run: no process works on it any more."""
        step_run = self._latest_step_run()
        if step_run is not None and not step_run.status.is_finished:
            if state is State.STOPPED:
                when_there(lambda: publish_utils.publish_stopped_step_run(step_run.id), "PUT")
            elif step_run.status in STARTED:
                when_there(lambda: publish_utils.publish_failed_step_run(step_run.id), "PUT")
        return state


_OUTCOMES = {Cause.OUT_OF_MEMORY: KILLED, Cause.MEMORY_ERROR: "memory error"}
