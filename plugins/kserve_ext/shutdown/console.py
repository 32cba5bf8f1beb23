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
import threading
from collections.abc import Callable, Iterator
from typing import Any

from kserve_ext.shutdown.drain import Drain

CTRL_CLOSE, CTRL_LOGOFF, CTRL_SHUTDOWN = 2, 5, 6
SYSTEM_LIMIT_S = 5.0  # what Windows gives a handler (HungAppTimeout and WaitToKillAppTimeout)
MARGIN_S = 0.5  # the part of it that the process needs to exit
NEW_PROCESS_GROUP = 0x00000200
"""CREATE_NEW_PROCESS_GROUP: events for our group do not reach the workers."""

SIGBREAK = getattr(signal, "SIGBREAK", 21)  # other systems have no name for it

_thread = threading.local()


@contextlib.contextmanager
def console_events(drain: Drain) -> Iterator[None]:
    """Drain on the console's events while this lasts; does nothing elsewhere than on Windows."""
    if sys.platform != "win32":
        yield
        return
    kernel: Any = ctypes.WinDLL("kernel32", use_last_error=True)
    prototype = ctypes.WINFUNCTYPE(ctypes.c_int, ctypes.c_uint)
    handler = prototype(handler_of(drain))
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
        limit_s = SYSTEM_LIMIT_S - MARGIN_S
        drain.signal(SIGBREAK, lame_duck=False, limit_s=limit_s)
        drain.finished.wait(limit_s)
        return 1

    return handle


@contextlib.contextmanager
def own_process_group() -> Iterator[None]:
    """Let this thread's ``multiprocessing`` start processes in a group of their own, on Windows."""
    _thread.makes_group = True
    try:
        yield
    finally:
        _thread.makes_group = False


def makes_group() -> bool:
    """Whether `own_process_group` is in force in this thread."""
    return getattr(_thread, "makes_group", False)
