"""How a step's process tells its orchestrator that memory ended it: by exit codes."""

from __future__ import annotations

import logging
from typing import NoReturn

from mlops_ext.processes.exits import exit_now

SIGKILLED = 137
"""As a shell reports signal 9, and what a killed container ends with."""
SIGBUS = 135
FULL_SHM = "SIGBUS: memory shared through a file, as in a /dev/shm that is full; set shm_size"
MEMORY_ERROR = 122
"""Exit code of a step that ended in a MemoryError which is to be retried. Free of other meaning:
shells use 126 and up, sysexits.h 64 to 78."""
RETRY_MEMORY_ERROR = "MLOPS_EXT_RETRY_MEMORY_ERROR"
"""Variable of a step's process: "1" if a MemoryError is to be retried."""


_OWN_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    TypeError,
    ValueError,
)


def may_follow_a_kill(error: BaseException | None) -> bool:
    """Whether the death of a child may explain *error*: not if it is all the code's own mistake."""
    while error is not None:
        if not isinstance(error, _OWN_MISTAKES):
            return True
        error = error.__cause__ or error.__context__
    return False


def leave(code: int) -> NoReturn:
    """End this process with *code* before ZenML publishes the step as failed.

    A step run that is FAILED cannot be resumed; one that is left RUNNING can.
    """
    logging.shutdown()
    exit_now(code)
