"""Windows: the console's events, which are not signals.

Ctrl-C and Ctrl-Break reach Python as SIGINT and SIGBREAK. A closing window, a log-off and a
shutdown do not: Windows calls a handler, in a thread that it makes, and ends the process when the
handler returns or five seconds have passed. Ours starts the drain and waits for it.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from kserve_ext.shutdown.drain import Drain

CTRL_CLOSE, CTRL_LOGOFF, CTRL_SHUTDOWN = 2, 5, 6
LIMIT_S = 4.5
"""Windows gives a handler 5 s (HungAppTimeout and WaitToKillAppTimeout); 0.5 s are for the exit."""
NEW_PROCESS_GROUP = 0x00000200
"""CREATE_NEW_PROCESS_GROUP: events for our group do not reach the workers."""

SIGBREAK = getattr(signal, "SIGBREAK", 21)  # other systems have no name for it

makes_group: ContextVar[bool] = ContextVar("makes_group", default=False)
"""Whether processes that are started in this context get a group of their own, on Windows."""


@contextlib.contextmanager
def console_events(drain: Drain) -> Iterator[None]:
    """Drain on the console's events while this lasts; does nothing elsewhere than on Windows."""
    if sys.platform != "win32":
        yield
        return
    kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)
    handler = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint)(handler_of(drain))
    if not kernel.SetConsoleCtrlHandler(handler, 1):
        raise ctypes.WinError(ctypes.get_last_error())
    try:
        yield
    finally:
        kernel.SetConsoleCtrlHandler(handler, 0)


def handler_of(drain: Drain) -> Callable[[int], int]:
    """The handler for *drain*: 1 where it has dealt with the event, 0 for the next handler."""

    def handle(event: int) -> int:
        if event not in (CTRL_CLOSE, CTRL_LOGOFF, CTRL_SHUTDOWN):
            return 0  # Python's own turns these into signals
        drain.signal(SIGBREAK, lame_duck=False, limit_s=LIMIT_S)
        drain.finished.wait(LIMIT_S)
        return 1

    return handle
