"""Rare events of a store, counted: corrupt entries, conflicts, lost replies, takeovers."""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import warnings
from collections.abc import Callable

from mlops_ext.files import temp_name
from mlops_ext.processes.forks import follow_forks

log = logging.getLogger(__name__)

# Kept a process: its notes are written whole each time.
_MOST = 1000


class Events:
    """Notes events of this process in a place of its own in the store.

    Args:
        folder: where such notes stand.
        write: keeps the bytes of a note, if that is possible; raises no error of the storage.
    """

    def __init__(self, folder: str, write: Callable[[str, bytes], object]) -> None:
        self._folder, self._write = folder, write
        self._warned: set[str] = set()
        self.after_fork()
        follow_forks(self)

    def after_fork(self) -> None:
        """In a child: another thread may have held the lock, and the place is the parent's."""
        self._lock = threading.Lock()
        self._place = ""
        self._lines: list[str] = []

    def note(self, kind: str, subject: str) -> None:
        """Count an event of *kind* about *subject*; it is kept where the store can be written."""
        with self._lock:
            if len(self._lines) < _MOST:
                self._place = self._place or f"{self._folder}/{temp_name('events')[:-4]}.jsonl"
                self._lines.append(json.dumps({"kind": kind, "subject": subject}) + "\n")
                self._write(self._place, "".join(self._lines).encode())

    def warn_once(self, kind: str, message: str, error: BaseException | None = None) -> None:
        """Warn the user of a problem, once per process and kind; the call goes on."""
        with self._lock:
            if kind in self._warned:
                return
            self._warned.add(kind)
        log.warning("%s", message)
        from joblib._store_backends import CacheWarning

        tell(message, CacheWarning, stacklevel=4, source=error)

    def corrupt(self, path: str, kept: str) -> None:
        """Tell of an entry that failed its check; *kept* says where it is now."""
        self.note("corrupt", path)
        self.warn_once(
            f"corrupt {path}", f"a cached result failed its check; it is computed again. {kept}"
        )


def tell(message: str, category: type[Warning], *, stacklevel: int, source: object = None) -> None:
    """Warn; if warnings are errors, the user's call still goes on."""
    with contextlib.suppress(Warning):
        warnings.warn(message, category, stacklevel=stacklevel, source=source)
