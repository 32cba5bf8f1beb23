"""A static pipeline's run under `local_oom`: steps start as they get ready, and stop together."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus
from zenml.orchestrators import publish_utils

from mlops_ext.redaction import redacted
from zenml_ext.entrypoint import is_stopping
from zenml_ext.local.budget import MemoryBudget
from zenml_ext.local.dag import FAIL_FAST, Dag, State
from zenml_ext.local.process import total_memory
from zenml_ext.local.step import StepJob
from zenml_ext.memory import cgroup

if TYPE_CHECKING:
    from zenml.models import PipelineSnapshotResponse

log = logging.getLogger(__name__)

# How often the run's status is read, for a stop that came from elsewhere.
_STATUS_PERIOD_S = 2.0


@dataclass(slots=True, kw_only=True)
class LocalRun:
    """One run.

    Attributes:
        snapshot: its snapshot.
        run_id: the pipeline run.
        environments: of each step's processes.
        job: makes the job of a step, once the steps before it have completed.
        max_parallel: steps side by side at most; None: as many as there are CPUs.
        stopping: set when the steps are to end.
        errors: what kept a step from being run at all.
    """

    snapshot: PipelineSnapshotResponse
    run_id: UUID
    environments: Mapping[str, Mapping[str, str]]
    job: Callable[..., StepJob]
    max_parallel: int | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    errors: dict[str, BaseException] = field(default_factory=dict)

    def to_end(self) -> None:
        """Run every step that can run.

        Raises:
            RuntimeError: steps failed; names them.
        """
        mode = self.snapshot.pipeline_configuration.execution_mode.value
        steps = self.snapshot.step_configurations
        dag = Dag(
            upstream={name: frozenset(step.spec.upstream_steps) for name, step in steps.items()},
            mode=mode,
        )
        limit = self.max_parallel or os.cpu_count() or 1
        budget = MemoryBudget(total_memory())
        cgroup.sweep()
        with ThreadPoolExecutor(limit, thread_name_prefix="step") as pool:
            try:
                self._loop(dag, budget, pool, limit)
            except BaseException:
                self._interrupt()
                raise
        self._report(dag)

    def _loop(self, dag: Dag, budget: MemoryBudget, pool: ThreadPoolExecutor, limit: int) -> None:
        running: dict[Future[State], str] = {}
        while not dag.done:
            for name in dag.ready()[: limit - len(running)]:
                dag.start(name)
                running[pool.submit(self._step, name, budget)] = name
            finished, _ = wait(running, timeout=_STATUS_PERIOD_S, return_when=FIRST_COMPLETED)
            for future in finished:
                name = running.pop(future)
                dag.finish(name, future.result())
                if dag.states[name] is State.FAILED and dag.mode == FAIL_FAST:
                    self.stopping.set()
            if not finished and self._is_being_stopped():
                log.warning("The run is being stopped.")
                dag.skip_waiting()
                self.stopping.set()

    def _step(self, name: str, budget: MemoryBudget) -> State:
        try:
            job = self.job(
                name=name,
                step=self.snapshot.step_configurations[name],
                snapshot=self.snapshot,
                run_id=self.run_id,
                environment=self.environments[name],
                stopping=self.stopping,
                budget=budget,
            )
            return job.run()
        except Exception as error:  # a step's failure must not take the run's bookkeeping along
            log.exception("Step %s could not be run.", name)
            self.errors[name] = error
            return State.FAILED

    def _is_being_stopped(self) -> bool:
        if self.stopping.is_set():
            return False
        try:
            status = Client().get_pipeline_run(self.run_id, hydrate=False).status
        except Exception as error:  # noqa: BLE001 - the server's hiccup is no stop
            log.debug("the run's status is not known: %s", redacted(error))
            return False
        return is_stopping(status)

    def _interrupt(self) -> None:
        """Ctrl-C: tell the server first, so that the steps publish themselves as stopped."""
        log.warning("Interrupted: the steps are stopped.")
        try:
            publish_utils.publish_pipeline_run_status_update(
                pipeline_run_id=self.run_id,
                status=ExecutionStatus.STOPPING,
                status_reason="Interrupted on the client.",
            )
        except Exception as error:  # noqa: BLE001 - the steps end all the same
            log.warning("the run could not be marked as stopping: %s", redacted(error))
        self.stopping.set()

    def _report(self, dag: Dag) -> None:
        skipped, failed = dag.named(State.SKIPPED), dag.named(State.FAILED)
        if skipped:
            log.warning("Skipped: %s.", ", ".join(skipped))
        if failed:
            cause: Any = next(iter(self.errors.values()), None)
            raise RuntimeError(f"Failed steps: {', '.join(failed)}.") from cause
        if dag.named(State.STOPPED):
            publish_utils.publish_pipeline_run_status_update(
                pipeline_run_id=self.run_id, status=ExecutionStatus.STOPPED
            )
