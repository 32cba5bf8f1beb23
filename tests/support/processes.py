"""Processes that a test waits for."""

import time
from contextlib import suppress

import psutil

PATIENCE_S = 100
"""What a test waits for at most: states that come within a second or two."""


def gone(pid):
    """Whether a process ends, and soon."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        deadline = time.monotonic() + PATIENCE_S
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True
