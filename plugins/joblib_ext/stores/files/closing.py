"""Closing what was read, without waiting where a close is a round trip.

A FUSE file system is told of each ``close`` and answers it, also where nothing was written; that
is a third of a hit's time there. NFS and local file systems close a read file at once. Which of
the two it is, the closes themselves tell: after three slow ones in a row a thread takes over,
until it meets a quick one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque

from mlops_ext.processes.forks import follow_forks

_SLOW_S = 0.000_2
_IN_A_ROW = 3
"""A busy machine can delay one close, or two."""
_UNTIMED = 15
"""Closes after a quick one that are not timed: asking for the time twice costs half a close."""
_MOST = 32
"""Files that wait to be closed; beyond, the caller closes them."""
_IDLE_S = 10.0


class Closer:
    """Closes descriptors of files that were only read. Never raises OSError.

    Args:
        slow_s: a close that takes longer is slow.
    """

    __slots__ = (
        "__weakref__",
        "_pending",
        "_ready",
        "_running",
        "_slow",
        "_slow_s",
        "_untimed",
        "deferring",
    )

    def __init__(self, slow_s: float = _SLOW_S) -> None:
        self._slow_s, self._slow, self._untimed = slow_s, 0, 0
        self._pending: deque[int] = deque()
        self._ready = threading.Condition()
        self._running = False
        self.deferring = False
        follow_forks(self)

    def close(self, descriptor: int) -> None:
        """Close *descriptor*, now or soon."""
        if self._untimed > 0:
            self._untimed -= 1
            try:  # noqa: SIM105  # a hit comes through here: `suppress` would cost it 0.3 µs
                os.close(descriptor)
            except OSError:  # some file systems report what an earlier write met
                pass
        elif not self.deferring or not self._hand_over(descriptor):
            self._time(descriptor)

    def _time(self, descriptor: int) -> None:
        start = time.perf_counter()
        with contextlib.suppress(OSError):
            os.close(descriptor)
        if time.perf_counter() - start <= self._slow_s:
            self._slow, self._untimed = 0, _UNTIMED
            return
        self._slow += 1
        if self._slow >= _IN_A_ROW:
            self.deferring = True

    def _hand_over(self, descriptor: int) -> bool:
        with self._ready:
            if len(self._pending) >= _MOST:
                return False
            if not self._running:
                try:
                    threading.Thread(target=self._run, name="mlops-ext-close", daemon=True).start()
                except RuntimeError:  # no more threads, or the interpreter ends
                    return False
                self._running = True
            self._pending.append(descriptor)
            self._ready.notify()
            return True

    def _run(self) -> None:
        while True:
            with self._ready:
                if not self._pending and not self._ready.wait(_IDLE_S) and not self._pending:
                    self._running = False
                    return
                if not self._pending:
                    continue
                descriptor = self._pending.popleft()
            start = time.perf_counter()
            with contextlib.suppress(OSError):
                os.close(descriptor)
            if time.perf_counter() - start <= self._slow_s:
                self.deferring, self._slow = False, 0

    def after_fork(self) -> None:
        """In a child: the thread is not here, the descriptors that it had to close are."""
        pending, self._pending = self._pending, deque()
        self._ready = threading.Condition()
        self._running = False
        for descriptor in pending:
            with contextlib.suppress(OSError):
                os.close(descriptor)
