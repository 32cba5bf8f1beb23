"""Signals of a server's process, read by a thread of its own while the server runs.

The handler in C writes the signal's number to a socket as soon as the signal comes, whatever the
main thread does; the thread reads it there. So a signal counts while a model blocks the event
loop. Where someone else took the wake-up descriptor over (asyncio's ``add_signal_handler`` does),
our Python handler writes the number itself.

Before a server starts, signals do what they do in any Python process: a client or a training step
imports KServe and serves nothing.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import selectors
import signal
import socket
import sys
import threading
from collections import Counter
from types import FrameType
from typing import Any

from kserve_ext.shutdown.drain import Drain
from mlops_ext.processes.forks import in_forked_child
from mlops_ext.processes.signals import is_stand_in
from mlops_ext.settings import environment

FROM_PYTHON = 0x80
"""Added to the number that the Python handler writes; signal numbers are below 65."""
LONGEST_WAIT_S = 3600.0  # upper bound for one wait of the thread; selectors take no infinity
SIGHUP = getattr(signal, "SIGHUP", None)
HANDLED = {"SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGBREAK"}
"""The signals that end a server; a platform has some of them."""


def is_interactive() -> bool:
    """Whether a person types here, so that Ctrl-C belongs to the prompt."""
    return hasattr(sys, "ps1") or "get_ipython" in vars(__import__("builtins"))


def is_main_thread() -> bool:
    """Whether this is the thread that may set handlers."""
    return threading.current_thread() is threading.main_thread()


def install_early_handlers() -> None:
    """Let PID 1 end on SIGTERM and SIGQUIT while models load, with ``finally`` and 128 + n.

    The kernel drops what has no handler there. Other processes need none.
    """
    if os.name != "posix" or os.getpid() != 1 or not is_main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGQUIT):
        if signal.getsignal(number) == signal.SIG_DFL or is_stand_in(signal.getsignal(number)):
            signal.signal(number, _exit)


def _exit(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)


class SignalHandlers:
    """Handlers for the signals that end a server, and the thread that acts on them.

    Use it from the main thread; the thread is a daemon. Handlers that stood before come back
    with `release`; after a fork the child has them back at once.

    Attributes:
        drain: gets the signals.
        interrupting: whether a signal raises SystemExit in the main thread: true until an
            event loop runs, for nothing else would end what KServe does before.
        ignored: signals that do nothing here (a worker's Ctrl-C is its parent's).
        passive: whether it was released, and passes signals on where its handlers still stand.
    """

    def __init__(self, drain: Drain) -> None:
        self.drain = drain
        self.interrupting = True
        self.ignored: frozenset[int] = frozenset()
        self._previous: dict[signal.Signals, Any] = {}
        self.passive = self._interrupted = False
        self._original_fd = self._loop_fd = -1
        self._seen: Counter[tuple[int, bool]] = Counter()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._thread = threading.Thread(target=self._run, name="kserve-ext-signals", daemon=True)

    def open(self) -> None:
        """Put the handlers in place, and start the thread.

        SIGHUP is left alone if it has a handler, or is ignored as under nohup: KServe leaves it
        alone, and users reload on it.
        """
        for number in (each for each in signal.Signals if each.name in HANDLED):
            standing = signal.getsignal(number)
            if number != SIGHUP or standing == signal.SIG_DFL:
                self._previous[number] = standing
                signal.signal(number, self._handle)
        old = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        if old != self._writer.fileno():
            self._original_fd = old
        self._thread.start()
        atexit.register(self.skip_final_gc)
        in_forked_child(self.release_in_child)

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
        if not is_main_thread():
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
        if not self.passive:
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
        """Pass the signal on to the earlier owners of the wake-up descriptor."""
        for descriptor in {self._original_fd, self._loop_fd} - {-1}:
            with contextlib.suppress(OSError):
                os.write(descriptor, bytes([number]))

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:  # select() knows 1,024 descriptors only
            selector.register(self._reader, selectors.EVENT_READ)
            while not self.passive:
                due_s = max(0.0, self.drain.guard())
                ready = selector.select(min(due_s, LONGEST_WAIT_S))
                for byte in self._reader.recv(256) if ready else b"":
                    self._note(byte)
        self._reader.close()

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
        if self._is_ours(number):
            is_int = number == signal.SIGINT
            self.drain.signal(number, lame_duck=not is_int, insists=self._insists(number))
        self.drain.wake()

    def _is_ours(self, number: int) -> bool:
        """Whether our handler stands for *number*: the user may have set one since."""
        ours = number not in self.ignored and not self.passive and number in set(self._previous)
        return ours and signal.getsignal(number) == self._handle

    def _insists(self, number: int) -> bool:
        """Whether *number* ends the process at once if it comes second."""
        wanted = self.drain.settings.second_signal
        if wanted == "ignore" or number == SIGHUP:
            return False
        # Kubelets, sidecars and process managers repeat themselves.
        repeated = os.getpid() == 1 or "KUBERNETES_SERVICE_HOST" in environment()
        return wanted == "end" or number == signal.SIGINT or not repeated
