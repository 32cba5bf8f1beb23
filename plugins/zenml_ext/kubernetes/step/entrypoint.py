"""The entrypoint of a step's pod: resumes, monitors memory, keeps a kill from being a failure.

Started as ZenML starts its own entrypoint, with another configuration class.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

from mlops_ext.errors import MlopsExtError
from mlops_ext.memory import Quantity
from mlops_ext.settings import environment
from zenml_ext.entrypoint import ResumingEntrypointConfiguration
from zenml_ext.kubernetes.monitor import Growth, MemoryMonitor, TerminationReport, load_in_place
from zenml_ext.kubernetes.objects.job import (
    ATTEMPTS_VARIABLE,
    IN_PLACE_VARIABLE,
    MAIN,
    NODE_VARIABLE,
    POD_VARIABLE,
    TASK_VARIABLE,
)
from zenml_ext.kubernetes.step.resize import PodResizer
from zenml_ext.memory.attempts import AttemptRecord
from zenml_ext.memory.cgroup import MemoryCgroup
from zenml_ext.memory.exits import RETRY_MEMORY_ERROR, SIGKILLED, leave
from zenml_ext.memory.records import metadata_of, record
from zenml_ext.processes import STEP_POD, patch_own_process

log = logging.getLogger(__name__)

_INTERRUPTED = "RunInterruptedException"
"""What ZenML raises on SIGTERM where nobody has stopped the run; by name, since it came late."""
_STOPPED = frozenset({"RunStoppedException", "StepHeartBeatTerminationException"})
"""What ZenML raises where somebody has stopped the run; by name, as above."""

_monitor: MemoryMonitor | None = None
_growth: Growth | None = None
_step_run_id: UUID | None = None


class KubernetesStepEntrypointConfiguration(ResumingEntrypointConfiguration):
    """Runs a step in its pod, with a memory monitor beside it."""

    def run(self) -> None:
        """Run the step."""
        check_temp_dir()
        patch_own_process(STEP_POD)
        with monitoring(), recording():
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
def monitoring() -> Iterator[None]:
    """Monitor memory, and let the limit grow, while the block runs; nothing without a cgroup."""
    global _monitor, _growth
    cgroup = MemoryCgroup.own()
    if cgroup is None:
        log.info("No memory cgroup can be read here: the step runs unmonitored.")
        yield
        return
    rule = load_in_place(environment().get(IN_PLACE_VARIABLE))
    resizer = PodResizer.own(environment().get(POD_VARIABLE, ""), MAIN) if rule else None
    _growth = Growth(rule=rule, resizer=resizer)
    monitor = _monitor = MemoryMonitor(cgroup, TerminationReport(), _growth.on_reading)
    monitor.start()
    try:
        yield
    finally:
        monitor.stop()
        if monitor.oom_kills:
            log.warning(
                "The kernel killed %d of this step's processes for memory, and the step went on"
                " without them.",
                monitor.oom_kills,
            )


def leave_if_memory_is_the_cause(error: BaseException | None) -> None:
    """End as if killed, before ZenML publishes a failure, if a kill is what caused *error*.

    On cgroup v1 the kernel kills one process: a step whose worker was killed sees an ordinary
    exception, and ZenML would declare the step failed, for good. So it does when the pod is
    taken from its node. The step run must stay RUNNING for the next attempt to resume.
    """
    if type(error).__name__ == _INTERRUPTED:
        log.warning("The pod is being taken away: the step run is left for the next attempt.")
        _leave()
    if _monitor is None:
        return
    _monitor.poll()
    retries_errors = environment().get(RETRY_MEMORY_ERROR) == "1"
    is_memory_error = isinstance(error, MemoryError) and retries_errors
    if not _monitor.oom_kills and not is_memory_error:
        return
    cause = "one of its processes was killed for memory" if _monitor.oom_kills else "MemoryError"
    log.error("The step ends because %s: %r", cause, error)
    _leave(memory_error=is_memory_error)


def _leave(**report: bool) -> NoReturn:
    if _monitor is not None:
        _monitor.write_report(**report)
    leave(SIGKILLED)


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Record the whole attempt at the end: memory often peaks while outputs are saved.

    ZenML asks for metadata before that; what it got then stands only for a pod that is killed.
    """
    try:
        yield
    finally:
        attempts = _attempts()
        if attempts and _step_run_id is not None:
            record(_step_run_id, attempts)


def step_metadata(step_run_id: UUID | None = None) -> dict[str, Any]:
    """This attempt and those before it, as metadata of the step run; empty in other processes."""
    global _step_run_id
    _step_run_id = step_run_id
    attempts = _attempts()
    return metadata_of(attempts) if attempts else {}


def _attempts() -> list[AttemptRecord]:
    """The attempts at this step, with the present one as it stands; none in other processes."""
    if _monitor is None:
        return []
    _monitor.poll()
    earlier = json.loads(environment().get(ATTEMPTS_VARIABLE) or "[]")
    limit = Quantity(_monitor.limit) if _monitor.limit else None
    grown = _growth.grown if _growth else ()
    begin = Quantity(_monitor.first_limit or 0).human
    reason = f"grown in place {len(grown)} times, from {begin}" if grown else ""
    outcome = _outcome(sys.exc_info()[1])
    own = AttemptRecord(
        number=len(earlier) + 1,
        memory=limit,
        peak=Quantity(_monitor.peak),
        outcome=outcome,
        reason=reason,
        node=environment().get(NODE_VARIABLE, ""),
        runtime_s=_monitor.runtime_s,
        lost_s=0.0 if outcome == "completed" else _monitor.runtime_s,
        **json.loads(environment().get(TASK_VARIABLE) or "{}"),
    )
    return [*(AttemptRecord.load(attempt) for attempt in earlier), own]


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "completed"
    return "stopped" if type(error).__name__ in _STOPPED else "failed"
