"""Which process has a file below a directory open: for messages, never for decisions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MOST = 5
"""Holders to name: enough to act on, few enough to read."""


def holders(path: Path) -> list[str]:
    """Processes that hold something below *path* open, as ``name (pid 12): file``.

    Empty where psutil is not installed or the system does not tell; only processes that the
    caller may look into are found.
    """
    try:
        import psutil
    except ImportError:
        return []
    real = os.path.realpath(path)
    found: list[str] = []
    for process in psutil.process_iter():
        try:
            opened = next(_below(process, real), None)
            if opened is not None:
                found.append(f"{process.name()} (pid {process.pid}): {opened}")
        except (psutil.Error, OSError):
            continue
        if len(found) == _MOST:
            break
    return found


def _below(process: object, root: str) -> Iterator[str]:
    import psutil

    assert isinstance(process, psutil.Process)
    candidates = [entry.path for entry in process.open_files()]
    with suppress(psutil.Error, OSError):
        candidates.append(process.cwd())
    for candidate in candidates:
        if candidate == root or candidate.startswith(root + os.sep):
            yield candidate
