"""How a step's process tells its orchestrator that memory ended it: by exit codes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NoReturn

from mlops_ext.processes.exits import exit_now
from mlops_ext.settings import environment

log = logging.getLogger(__name__)

SIGKILLED = 137
"""As a shell reports signal 9, and what a killed container ends with."""
SIGBUS = 135
FULL_SHM = "SIGBUS: memory shared through a file, as in a /dev/shm that is full; set shm_size"
MEMORY_ERROR = 122
"""Exit code of a step that ended in a MemoryError which is to be retried. Free of other meaning:
shells use 126 and up, sysexits.h 64 to 78."""
RETRY_MEMORY_ERROR = "MLOPS_EXT_RETRY_MEMORY_ERROR"
"""Variable of a step's process: "1" if a MemoryError is to be retried."""


_NAMED_WRONGLY = (AttributeError, ImportError, LookupError, NameError)
_OWN_MISTAKES = (ArithmeticError, AssertionError, TypeError, ValueError, *_NAMED_WRONGLY)


def may_follow_a_kill(error: BaseException | None) -> bool:
    """Whether the death of a child may explain *error*: not if it is all the code's own mistake."""
    while error is not None:
        if not isinstance(error, _OWN_MISTAKES):
            return True
        error = error.__cause__ or error.__context__
    return False


def leave_if_memory_is_the_cause(
    error: BaseException | None, kills: int, leave_for: Callable[[int], NoReturn]
) -> None:
    """End this process, before ZenML publishes a failure, if memory is what caused *error*.

    On cgroup v1 the kernel kills one process: a step whose worker was killed sees an ordinary
    exception, and ZenML would declare the step failed, for good.

    Args:
        error: what the step failed with.
        kills: how many of its processes the kernel has killed.
        leave_for: ends the process: `SIGKILLED` or `MEMORY_ERROR`.
    """
    if kills and may_follow_a_kill(error):
        log.error("The step ends because one of its processes was killed for memory: %r", error)
        leave_for(SIGKILLED)
    if isinstance(error, MemoryError) and environment().get(RETRY_MEMORY_ERROR):
        log.error("The step ends with a MemoryError, which is retried: %r", error)
        leave_for(MEMORY_ERROR)


def leave(code: int) -> NoReturn:
    """End this process with *code* before ZenML publishes the step as failed.

    A step run that is FAILED cannot be resumed; one that is left RUNNING can.
    """
    logging.shutdown()
    exit_now(code)
