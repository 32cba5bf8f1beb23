"""The entrypoint of a step's pod: resumes, has memory watched, keeps a kill from being a failure.

Started as ZenML starts its own entrypoint, with another configuration class.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NoReturn
from uuid import UUID

from mlops_ext import tempdirs
from mlops_ext.codec import decode
from mlops_ext.memory import InPlace, Quantity
from mlops_ext.settings import environment
from zenml_ext.entrypoint import ResumingEntrypointConfiguration
from zenml_ext.kubernetes.growth import NEVER_S
from zenml_ext.kubernetes.objects.job import (
    ATTEMPTS_VARIABLE,
    IN_PLACE_VARIABLE,
    MAIN,
    NODE_VARIABLE,
    POD_VARIABLE,
    TASK_VARIABLE,
)
from zenml_ext.kubernetes.watcher import Watch
from zenml_ext.memory import exits
from zenml_ext.memory.attempts import AttemptRecord
from zenml_ext.memory.cgroup import MemoryCgroup
from zenml_ext.memory.exits import MEMORY_ERROR, SIGKILLED, leave
from zenml_ext.memory.records import metadata_of, record
from zenml_ext.processes import STEP_POD, patch_own_process

log = logging.getLogger(__name__)

# What ZenML raises on SIGTERM where nobody has stopped the run; by name, since it came late.
_INTERRUPTED = "RunInterruptedException"
# What ZenML raises where somebody has stopped the run; by name, as above.
_STOPPED = frozenset({"RunStoppedException", "StepHeartBeatTerminationException"})

_watch: Watch | None = None
_step_run_id: UUID | None = None


class KubernetesStepEntrypointConfiguration(ResumingEntrypointConfiguration):
    """Runs a step in its pod, with a process beside it that watches its memory."""

    def run(self) -> None:
        """Run the step."""
        check_temp_dir()
        patch_own_process(STEP_POD)
        with watching(), recording():
            super().run()


def check_temp_dir() -> None:
    """Make TMPDIR usable, before ZenML would fall back to another place without a word.

    Raises:
        TempDirError: TMPDIR is set, and cannot be written to.
    """
    if wanted := environment().get("TMPDIR"):
        tempdirs.check_root(wanted)
        tempfile.tempdir = None  # what was found before TMPDIR became usable is forgotten


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Watch memory, and let the limit grow, while the block runs; nothing without a cgroup."""
    global _watch
    cgroup, known = MemoryCgroup.own(), environment()
    if cgroup is None:
        log.info("No memory cgroup can be read here: the step runs unwatched.")
        yield
        return
    rule = known.get(IN_PLACE_VARIABLE)
    growth = decode(InPlace, json.loads(rule)) if rule else None
    with Watch(cgroup, growth, pod=known.get(POD_VARIABLE, ""), container=MAIN) as _watch:
        yield
    if kills := _watch.look().oom_kills:
        log.warning(
            "The kernel killed %d of this step's processes for memory, and the step went on"
            " without them.",
            kills,
        )


def leave_if_memory_is_the_cause(error: BaseException | None) -> None:
    """End unpublished if memory caused *error*, or the pod is being taken from its node."""
    if type(error).__name__ == _INTERRUPTED:
        log.warning("The pod is being taken away: the step run is left for the next attempt.")
        _leave(SIGKILLED)
    if _watch is not None:
        exits.leave_if_memory_is_the_cause(error, _watch.look().oom_kills, _leave)


def _leave(cause: int) -> NoReturn:
    if _watch is not None:
        _watch.close(**({"memory_error": True} if cause == MEMORY_ERROR else {}))
    leave(SIGKILLED)  # what ends its Job at once


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
    if _watch is None:
        return []
    earlier = json.loads(environment().get(ATTEMPTS_VARIABLE) or "[]")
    seen, runtime_s = _watch.look(), _watch.runtime_s
    begin = Quantity(seen.first_limit or 0).human
    grown = sum(seconds != NEVER_S for seconds in seen.resizes_s)
    outcome = _outcome(sys.exc_info()[1])
    own = AttemptRecord(
        number=len(earlier) + 1,
        memory=Quantity(seen.limit) if seen.limit else None,
        peak=Quantity(seen.peak),
        outcome=outcome,
        reason=f"grown in place {grown} times, from {begin}" if grown else "",
        node=environment().get(NODE_VARIABLE, ""),
        runtime_s=runtime_s,
        lost_s=0.0 if outcome == "completed" else runtime_s,
        curve=seen.curve,
        resizes_s=seen.resizes_s,
        **json.loads(environment().get(TASK_VARIABLE) or "{}"),
    )
    return [*(AttemptRecord.load(attempt) for attempt in earlier), own]


def _outcome(error: BaseException | None) -> str:
    if error is None:
        return "completed"
    return "stopped" if type(error).__name__ in _STOPPED else "failed"
