"""Signals in the time before a framework is imported, and nobody listens yet.

The kernel drops a signal for PID 1 that has no handler. Elsewhere it ends the process: that stays
as it is.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

_LOST = ("SIGTERM", "SIGQUIT")
"""Signals that Python leaves to the kernel, and that ask for an end."""


def hear_as_pid_1() -> None:
    """Let the signals that ask for an end end PID 1 as they end any other process.

    A handler that somebody has set already stays. Whoever sets one later replaces ours.
    """
    if os.name != "posix" or os.getpid() != 1:
        return
    for name in _LOST:
        number = signal.Signals[name]
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)


def is_stand_in(handler: object) -> bool:
    """Whether *handler* is the one of `hear_as_pid_1`, which counts as nobody's."""
    return handler is _end


def _end(number: int, _: FrameType | None) -> None:
    os._exit(128 + number)
