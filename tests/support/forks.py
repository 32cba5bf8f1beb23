"""Forked children, and locks that another thread holds at the fork."""

import contextlib
import os
import signal
import threading


def in_child(check):
    """Whether *check* is true in a forked child, which is killed where it hangs."""
    child = os.fork()
    if child == 0:
        signal.alarm(30)
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)  # it must not go on with the tests of its parent
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@contextlib.contextmanager
def held_by_another_thread(lock):
    """Have another thread hold *lock* for the time of the block."""
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with lock:
            inside.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert inside.wait(60)
        yield
    finally:
        leave.set()
        thread.join()
