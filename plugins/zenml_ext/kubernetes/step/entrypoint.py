"""The entrypoint of a step's pod: adopts, watches memory, keeps a kill from being a failure.

Started as ZenML starts its own entrypoint, with another configuration class.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from mlops_ext.errors import MlopsExtError
from mlops_ext.memory import Quantity
from mlops_ext.settings import environment
from zenml_ext.entrypoint import AdoptingEntrypointConfiguration
from zenml_ext.kubernetes.monitor import Growth, StepWatcher, TerminationReport, load_in_place
from zenml_ext.kubernetes.objects.job import (
    ATTEMPTS_VARIABLE,
    IN_PLACE_VARIABLE,
    MAIN,
    NODE_VARIABLE,
    POD_VARIABLE,
)
from zenml_ext.kubernetes.step.resize import PodResizer
from zenml_ext.memory.kubernetes_cgroup import MemoryCgroup
from zenml_ext.memory.records import ATTEMPTS, LIMIT, PEAK, AttemptRecord

__all__ = ["KubernetesStepEntrypointConfiguration", "step_metadata"]

log = logging.getLogger(__name__)

KILLED_EXIT_CODE = 137
"""What the failure policy of the step's Job looks for, and what a killed container ends with."""
_INTERRUPTED = "RunInterruptedException"
"""What ZenML raises on SIGTERM where nobody has stopped the run; by name, since it came late."""
_STOPPED = frozenset({"RunStoppedException", "StepHeartBeatTerminationException"})
"""What ZenML raises where somebody has stopped the run; by name, as above."""
RETRY_MEMORY_ERROR_VARIABLE = "MLOPS_EXT_RETRY_MEMORY_ERROR"

_watcher: StepWatcher | None = None


class KubernetesStepEntrypointConfiguration(AdoptingEntrypointConfiguration):
    """Runs a step in its pod, with the watcher beside it."""

    def run(self) -> None:
        """Run the step."""
        check_temp_dir()
        with watching() as watcher, _kills_are_no_failures(watcher):
            super().run()


def check_temp_dir() -> None:
    """Make TMPDIR usable, before ZenML would fall back to another place without a word.

    Raises:
        MlopsExtError: TMPDIR is set, and cannot be written to.
    """
    wanted = environment().get("TMPDIR")
    if not wanted:
        return
    try:
        Path(wanted).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            pass
    except OSError as error:
        raise MlopsExtError(
            f"the temporary directory {wanted} cannot be written to ({error}); give the volume"
            " an fsGroup, or the directory the rights of the pod's user"
        ) from error
    tempfile.tempdir = None  # what was found before TMPDIR became usable is forgotten


@contextlib.contextmanager
def watching() -> Iterator[StepWatcher | None]:
    """A watcher for as long as the block runs; None where there is no memory cgroup to read."""
    global _watcher
    cgroup = MemoryCgroup.own()
    if cgroup is None:
        log.info("No memory cgroup can be read here: the step runs unwatched.")
        yield None
        return
    rule = load_in_place(environment().get(IN_PLACE_VARIABLE))
    resizer = PodResizer.own(environment().get(POD_VARIABLE, ""), MAIN) if rule else None
    watcher = StepWatcher(cgroup, Growth(rule=rule, resizer=resizer), TerminationReport())
    _watcher = watcher
    watcher.start()
    try:
        yield watcher
    finally:
        watcher.stop()
        if watcher.oom_kills:
            log.warning(
                "The kernel killed %d of this step's processes for memory, and the step went on"
                " without them.",
                watcher.oom_kills,
            )


@contextlib.contextmanager
def _kills_are_no_failures(watcher: StepWatcher | None) -> Iterator[None]:
    """End as if killed, before ZenML publishes a failure, where a kill is what caused it.

    On cgroup v1 the kernel kills one process: a step whose worker was killed sees an ordinary
    exception, and ZenML would declare the step failed, for good. So it does when the pod is
    taken from its node. The step run must stay RUNNING for the next attempt to adopt.
    """
    from zenml.orchestrators import step_runner

    upstream: Any = step_runner.publish_failed_step_run  # type: ignore[attr-defined]  # imported there

    def publish_failed_step_run(*args: Any, **kwargs: Any) -> Any:
        _end_where_memory_is_the_cause(watcher, sys.exc_info()[1])
        return upstream(*args, **kwargs)

    step_runner.publish_failed_step_run = publish_failed_step_run  # type: ignore[attr-defined]
    try:
        yield
    finally:
        step_runner.publish_failed_step_run = upstream  # type: ignore[attr-defined]


def _end_where_memory_is_the_cause(
    watcher: StepWatcher | None, error: BaseException | None
) -> None:
    if type(error).__name__ == _INTERRUPTED:
        log.warning("The pod is being taken away: the step run is left for the next attempt.")
        _end_as_if_killed(watcher)
    if watcher is None:
        return
    watcher.look()
    retries_errors = environment().get(RETRY_MEMORY_ERROR_VARIABLE) == "1"
    is_memory_error = isinstance(error, MemoryError) and retries_errors
    if not watcher.oom_kills and not is_memory_error:
        return
    cause = "one of its processes was killed for memory" if watcher.oom_kills else "MemoryError"
    log.error("The step ends because %s: %r", cause, error)
    _end_as_if_killed(watcher, memory_error=is_memory_error)


def _end_as_if_killed(watcher: StepWatcher | None, **report: bool) -> NoReturn:
    if watcher is not None:
        watcher.write_report(**report)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(KILLED_EXIT_CODE)


def step_metadata() -> dict[str, Any]:
    """This attempt and those before it, as metadata of the step run; empty in other processes."""
    if _watcher is None:
        return {}
    from zenml.metadata.metadata_types import StorageSize

    _watcher.look()
    earlier = json.loads(environment().get(ATTEMPTS_VARIABLE) or "[]")
    limit = Quantity(_watcher.limit) if _watcher.limit else None
    grown = _watcher.growth.grown
    begin = Quantity(_watcher.first_limit or 0).human
    reason = f"grown in place {len(grown)} times, from {begin}" if grown else ""
    outcome = _outcome(sys.exc_info()[1])
    own = AttemptRecord(
        number=len(earlier) + 1,
        memory=limit,
        peak=Quantity(_watcher.peak),
        outcome=outcome,
        reason=reason,
        node=environment().get(NODE_VARIABLE, ""),
        runtime_s=_watcher.runtime_s,
        lost_s=0.0 if outcome == "completed" else _watcher.runtime_s,
    )
    values: dict[str, Any] = {ATTEMPTS: [*earlier, own.dump()], PEAK: StorageSize(_watcher.peak)}
    if limit is not None:
        values[LIMIT] = StorageSize(limit)
    return values


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "completed"
    return "stopped" if type(error).__name__ in _STOPPED else "failed"
