"""End the process at once, for the few places in which raising an exception is not enough."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def exit_now(status: int, *, flush: bool = True) -> NoReturn:
    """End this process with *status*, running no ``finally``, no ``atexit`` and no other thread.

    Args:
        status: the exit status.
        flush: write out standard output and error first; False if a full pipe must not delay
            the end.
    """
    if flush:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # closed, or None in a windowed process
                stream.flush()
    os._exit(status)
