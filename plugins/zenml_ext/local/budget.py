"""Memory that the steps of a run share, so that together they do not exhaust the machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(slots=True)
class MemoryBudget:
    """Memory that attempts share: one starts when its limit fits beside those that run.

    Attributes:
        total: bytes to share. An attempt that needs more runs alone.
    """

    total: int
    _held: list[int] = field(default_factory=list)
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def share(self, wanted: int | None, stopping: threading.Event) -> Iterator[None]:
        """Hold *wanted* bytes inside the block; waits for them, but not beyond *stopping*."""
        size = wanted or 0
        with self._changed:
            while self._held and sum(self._held) + size > self.total and not stopping.is_set():
                self._changed.wait(0.5)
            self._held.append(size)
        try:
            yield
        finally:
            with self._changed:
                self._held.remove(size)
                self._changed.notify_all()
