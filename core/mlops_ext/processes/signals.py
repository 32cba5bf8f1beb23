"""Handle SIGTERM and SIGQUIT in PID 1 until a framework installs handlers of its own.

The kernel drops a signal that PID 1 has no handler for, so that a container which is stopped early
is killed half a minute later. Any other process is ended by it, and is left alone: so are the
children that PID 1 forks.

Every interpreter below ``mlops-ext run`` imports this module: `signal` is loaded for PID 1 only.
"""

import os

TYPE_CHECKING = False  # type checkers know this name; importing typing costs milliseconds
if TYPE_CHECKING:
    from types import FrameType

# Signals that Python leaves to the kernel, and that ask for an end.
_LOST = ("SIGTERM", "SIGQUIT")


def hear_as_pid_1() -> None:
    """Make SIGTERM and SIGQUIT end PID 1, as they end any other process.

    A handler that is set already stays; one that is set later replaces ours. A forked child, which
    is not PID 1, has the default again.
    """
    if os.name != "posix" or os.getpid() != 1:
        return
    import signal

    for name in _LOST:
        number = signal.Signals[name]
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, _end)
    os.register_at_fork(after_in_child=_give_back)


def is_stand_in(handler: object) -> bool:
    """Whether *handler* is the one of `hear_as_pid_1`, which counts as the default."""
    return handler is _end


def _give_back() -> None:
    import signal

    for name in _LOST:
        number = signal.Signals[name]
        if signal.getsignal(number) is _end:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, _: "FrameType | None") -> None:
    from mlops_ext.processes.exits import exit_now

    exit_now(128 + number, flush=False)
