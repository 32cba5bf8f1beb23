"""How a step's process tells its orchestrator that memory ended it: by exit codes."""

from __future__ import annotations

import logging
from typing import NoReturn

from mlops_ext.processes.exits import exit_now

SIGKILLED = 137
"""As a shell reports signal 9, and what a killed container ends with."""
MEMORY_ERROR = 122
"""Exit code of a step that ended in a MemoryError which is to be retried. Free of other meaning:
shells use 126 and up, sysexits.h 64 to 78."""
RETRY_MEMORY_ERROR = "MLOPS_EXT_RETRY_MEMORY_ERROR"
"""Variable of a step's process: "1" if a MemoryError is to be retried."""


def leave(code: int) -> NoReturn:
    """End this process with *code* before ZenML publishes the step as failed.

    A step run that is FAILED cannot be resumed; one that is left RUNNING can.
    """
    logging.shutdown()
    exit_now(code)
