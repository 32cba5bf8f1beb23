"""Rare events of a store, counted: corrupt entries, conflicts, lost replies, takeovers."""

from __future__ import annotations

import collections
import contextlib
import json
import logging
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path

from mlops_ext.files import temp_name
from mlops_ext.processes.forks import follow_forks

log = logging.getLogger(__name__)

KINDS = ("corrupt", "conflict", "lost-reply", "takeover")
_SUFFIX = ".jsonl"


class Events:
    """Notes events of this process in a file of its own below the store; never raises OSError."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file: str | None = None
        self._lock = threading.Lock()
        self._warned: set[str] = set()
        self.counts: collections.Counter[str] = collections.Counter()
        follow_forks(self)

    def after_fork(self) -> None:
        """In a child: a thread that is not here may hold the lock, and the file is the parent's."""
        self._lock = threading.Lock()
        self._file = None

    def note(self, kind: str, subject: str) -> None:
        """Count an event of *kind* about *subject*; it is kept where the store can be written."""
        with self._lock:
            self.counts[kind] += 1
            with contextlib.suppress(OSError):
                if self._file is None:
                    Path(self._folder).mkdir(parents=True, exist_ok=True)
                    self._file = f"{self._folder}/{temp_name('events')[:-4]}{_SUFFIX}"
                with Path(self._file).open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"kind": kind, "subject": subject}) + "\n")

    def warn_once(self, kind: str, message: str, error: BaseException | None = None) -> None:
        """Tell the user of a trouble, once a process and kind; the call goes on."""
        with self._lock:
            if kind in self._warned:
                return
            self._warned.add(kind)
        log.warning("%s", message)
        from joblib._store_backends import CacheWarning

        tell(message, CacheWarning, stacklevel=4, source=error)

    def corrupt(self, path: str, kept: str) -> None:
        """Note and tell that the entry at *path* was damaged; *kept* says where it is now."""
        self.note("corrupt", path)
        self.warn_once(
            f"corrupt {path}", f"a cached result did not verify; it is computed again. {kept}"
        )


def tell(message: str, category: type[Warning], *, stacklevel: int, source: object = None) -> None:
    """Warn; where warnings are errors, the user's call goes on all the same."""
    with contextlib.suppress(Warning):
        warnings.warn(message, category, stacklevel=stacklevel, source=source)


def count_events(lines: Iterable[str]) -> collections.Counter[str]:
    """How often each kind was noted in *lines*."""
    counts: collections.Counter[str] = collections.Counter()
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            counts[str(json.loads(line)["kind"])] += 1
    return counts
