"""The time the double lives in: the machine's, or one that moves only when a test says so."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """The machine's time."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall(self) -> float:
        return time.time()


class VirtualClock(Clock):
    """Stands still until somebody adds to `seconds`: a week passes in a minute."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds

    def wall(self) -> float:
        return 1_800_000_000 + self.seconds


_clock = [Clock()]


def monotonic() -> float:
    return _clock[-1].monotonic()


def wall() -> float:
    return _clock[-1].wall()


@contextlib.contextmanager
def using(clock: Clock) -> Iterator[None]:
    """Every double of this process lives in *clock* meanwhile."""
    _clock.append(clock)
    try:
        yield
    finally:
        _clock.pop()
