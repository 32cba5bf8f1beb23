"""Which process has a file below a directory open: for messages, never for decisions."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def holder(path: Path) -> str:
    """A process that holds something below *path* open, as ``name (pid 12): file``.

    It is "" if psutil is not installed, if the system does not tell, or if the process is one that
    the caller may not look into.
    """
    try:
        import psutil
    except ImportError:
        return ""
    real = os.path.realpath(path)
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            for opened in (*(entry.path for entry in process.open_files()), process.cwd()):
                if (opened + os.sep).startswith(real + os.sep):
                    return f"{process.name()} (pid {process.pid}): {opened}"
    return ""
