"""Signals of this process, read by a thread of its own.

The handler in C writes the signal's number to a socket as soon as the signal comes, whatever the
main thread does; the thread reads it there. So a signal counts while a model loads in C code or
blocks the event loop. Where someone else took the wake-up descriptor over (asyncio's
``add_signal_handler`` does), our Python handler writes the number itself.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import logging
import math
import os
import select
import signal
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from types import FrameType
from typing import Any

from kserve_ext.shutdown.drain import Drain
from mlops_ext.processes.forks import in_forked_child
from mlops_ext.processes.signals import is_stand_in

log = logging.getLogger(__name__)

FROM_PYTHON = 0x80
"""Added to the number that the Python handler writes; signal numbers are below 65."""
LONGEST_WAIT_S = 3600.0
"""Upper bound for one wait of the thread; select takes no infinity."""

_early_handlers: SignalHandlers | None = None


def handled_signals() -> list[signal.Signals]:
    """The signals that end a server on this platform."""
    names = ("SIGINT", "SIGTERM", "SIGQUIT", "SIGBREAK")
    return [signal.Signals[name] for name in names if hasattr(signal, name)]


def is_interactive() -> bool:
    """Whether a person types here, so that Ctrl-C belongs to the prompt."""
    return hasattr(sys, "ps1") or "get_ipython" in vars(__import__("builtins"))


class SignalHandlers:
    """Handlers for the signals that end a server, and the thread that acts on them.

    Use it from the main thread; the thread is a daemon. Handlers that stood before come back
    with `release`; after a fork the child has them back at once.

    Attributes:
        drain: what is told about signals.
        interrupting: whether a signal raises SystemExit in the main thread: true until an
            event loop runs, for nothing else would end a model that is loading.
        ignored: signals that are taken notice of by nobody (a worker's Ctrl-C is its parent's).
        passive: whether it was released, and passes signals on where its handlers still stand.
        also: further checks of the thread; each returns the seconds until it is due again.
    """

    def __init__(self, drain: Drain) -> None:
        self.drain = drain
        self.interrupting = True
        self.ignored: frozenset[int] = frozenset()
        self.also: list[Callable[[], float]] = []
        self._previous: dict[signal.Signals, Any] = {}
        self.passive = False
        self._interrupted = False
        self._original_fd = -1
        self._loop_fd = -1
        self._seen: Counter[tuple[int, bool]] = Counter()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._owner = os.getpid()
        self._thread = threading.Thread(target=self._run, name="kserve-ext-signals", daemon=True)

    def open(self, *, only_default: bool = False) -> None:
        """Put the handlers in place, and start the thread.

        Args:
            only_default: leave a signal alone that has a handler of the user's, or is ignored.
        """
        for number in handled_signals():
            standing = signal.getsignal(number)
            default = is_stand_in(standing) or standing in (
                signal.SIG_DFL, signal.default_int_handler
            )  # fmt: skip
            if standing != self._handle and (default or not only_default):
                self._previous[number] = standing
                signal.signal(number, self._handle)
        old = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if old != self._writer.fileno():
            self._original_fd = old
        if not self._thread.is_alive():
            self._thread.start()

    def enter_loop(self) -> None:
        """An event loop runs now: end no load any more, and take the descriptor that it took."""
        old = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if old != self._writer.fileno():
            self._loop_fd = old
        self.interrupting = False

    def leave_loop(self) -> None:
        """The event loop ends, and its descriptor with it."""
        self._loop_fd = -1

    def release(self) -> None:
        """Put earlier handlers back, where ours still stand; off the main thread, pass them on."""
        self.passive = True
        if threading.current_thread() is not threading.main_thread():
            return
        self._restore()
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")  # the thread ends

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            if signal.getsignal(number) == self._handle:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
        current = signal.set_wakeup_fd(-1)
        if current not in (-1, self._writer.fileno()):
            signal.set_wakeup_fd(current)
        elif self._original_fd != -1:
            with contextlib.suppress(ValueError, OSError):  # its owner has closed it since
                signal.set_wakeup_fd(self._original_fd, warn_on_full_buffer=False)
        self._previous.clear()

    def skip_final_gc(self) -> None:
        """At the interpreter's end after a signal: skip the last search for cycles.

        It takes about a second with all that KServe imports, and frees what the kernel frees.
        """
        if self.drain.ending or self._interrupted:
            gc.freeze()

    def release_in_child(self) -> None:
        """After a fork: handlers are inherited, the thread is not, the sockets are shared."""
        if os.getpid() != self._owner and not self.passive:
            self.passive = True
            self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """Run by Python in the main thread."""
        if self.passive:
            self._pass_on(number, frame)
            return
        with contextlib.suppress(OSError):  # the buffer is full: the thread has enough to read
            self._writer.send(bytes([FROM_PYTHON | number]))
        if self.interrupting and number not in self.ignored:
            self._interrupted = True
            raise SystemExit(0)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        """Do what the handler that stood before does."""
        previous = self._previous.get(signal.Signals(number), signal.SIG_DFL)
        if callable(previous):
            previous(number, frame)
        elif previous is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _forward(self, number: int) -> None:
        """Tell whoever had the wake-up descriptor before us."""
        for descriptor in {self._original_fd, self._loop_fd} - {-1}:
            with contextlib.suppress(OSError):
                os.write(descriptor, bytes([number]))

    def _run(self) -> None:
        while not self.passive:
            due = min((check() for check in self._checks()), default=math.inf)
            timeout = min(max(due, 0.0), LONGEST_WAIT_S)
            ready, _, _ = select.select([self._reader], [], [], timeout)
            for byte in self._reader.recv(256) if ready else b"":
                self._note(byte)
        self._reader.close()

    def _checks(self) -> list[Callable[[], float]]:
        return [self.drain.guard, *self.also]

    def _note(self, byte: int) -> None:
        """Count a signal once, though the C handler and the Python handler both write it."""
        if byte == 0:  # from `release`
            return
        number, from_python = byte & ~FROM_PYTHON, bool(byte & FROM_PYTHON)
        self._seen[number, from_python] += 1
        if from_python and self._seen[number, True] <= self._seen[number, False]:
            return
        if from_python:  # the C handler's byte went elsewhere
            self._seen[number, False] = self._seen[number, True]
        else:
            self._forward(number)
        try:
            ours = signal.Signals(number) in self._previous
        except ValueError:
            return
        if ours and number not in self.ignored and not self.passive:
            self.drain.signal(number, lame_duck=number != signal.SIGINT)
        self.drain.wake()


def standing() -> SignalHandlers | None:
    """The handlers of `install_early_handlers`, where they stand."""
    return None if _early_handlers is None or _early_handlers.passive else _early_handlers


def install_early_handlers() -> SignalHandlers | None:
    """Handlers for the time before a server starts: import of frameworks, loading of models.

    A signal that comes then ends the process cleanly within a second, also as PID 1, where the
    kernel drops signals without handler. Nothing is done off the main thread, at a prompt or in
    a notebook, or for signals with a handler of the user's.
    """
    global _early_handlers
    if threading.current_thread() is not threading.main_thread() or is_interactive():
        return None
    if standing() is None:
        handlers = SignalHandlers(Drain())
        handlers.open(only_default=True)
        atexit.register(handlers.skip_final_gc)
        in_forked_child(handlers.release_in_child)
        _early_handlers = handlers
    return _early_handlers
