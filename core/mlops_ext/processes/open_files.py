"""Which process has a file below a directory open: for messages, never for decisions."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

# Holders to name: enough to act on, few enough to read.
_MOST = 5


def holders(path: Path) -> list[str]:
    """Processes that hold something below *path* open, as ``name (pid 12): file``.

    Empty if psutil is not installed or the system does not tell; only processes that the
    caller may look into are found.
    """
    try:
        import psutil
    except ImportError:
        return []
    real = os.path.realpath(path)
    found: list[str] = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            opened = [*(entry.path for entry in process.open_files()), process.cwd()]
            inside = [each for each in opened if each == real or each.startswith(real + os.sep)]
            if inside:
                found.append(f"{process.name()} (pid {process.pid}): {inside[0]}")
        if len(found) == _MOST:
            break
    return found
