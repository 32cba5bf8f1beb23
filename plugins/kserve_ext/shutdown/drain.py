"""The shutdown of this process: the pure sequence, its state shared by a loop and a thread.

Events come from any thread through `Drain.feed`. Steps for the loop are queued and taken there
by `Drain.steps`. NOT_READY and KILL do not wait for the loop, which a model may be blocking.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import logging
import math
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace
from typing import Any, Protocol

from kserve_ext.settings import KServeSettings
from kserve_ext.shutdown.counts import IN_FLIGHT, SEEN, Counts
from mlops_ext.processes.exits import exit_now
from mlops_ext.shutdown import Event, Phase, Shutdown, Signal, Started, Step, Tick

# A child of KServe's logger: its handlers and level hold for these lines too.
log = logging.getLogger("kserve.graceful")

LONGEST_TELL_S = 0.1  # how long the last words may take: a second signal ends at once
POLL_S = 0.02  # how often requests in flight are counted while draining: small against any request


def describe(error: BaseException) -> str:
    """Type of *error* and where it was raised.

    Not its message: that may hold an address with a password in it, or a header.
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" in {frames[-1].name}, {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{where}"


class Endpoint(Protocol):
    """A server, or a set of worker processes, that is opened and drained."""

    # Whether it has processes of its own, which stop their models by themselves.
    apart: bool = False

    @property
    def started(self) -> bool:
        """Whether it accepts requests."""
        ...

    def in_flight(self) -> int:
        """Requests accepted and not yet answered."""
        ...

    async def close(self) -> None:
        """Stop accepting; return at once."""

    async def finish(self) -> None:
        """Let the server's own coroutine end."""

    def requests(self) -> Collection[asyncio.Task[Any]]:
        """The tasks of this process that answer requests now."""
        return ()

    def waiting(self) -> int:
        """Connections and calls that the kernel or gRPC has accepted, and no handler has seen."""
        return 0

    def refuse(self) -> int:
        """Answer requests in flight with an error; how many there were."""
        return 0


class Drain:
    """The shutdown of one process or, off the main thread, of one server.

    Attributes:
        settings: what holds for the server.
        state: where the sequence stands.
        ending: whether readiness says no; a plain attribute, read for each request.
        refusing: whether cancelled requests are answered with an error.
        counts: what became of requests, in all processes of the server.
        bystanders: tasks that use no model: an unload does not wait for them.
        reloads: models that are being loaded anew: requests to them wait.
        endpoints: the servers and workers that are drained.
        drained: set when everything has stopped.
        finished: set when the server may be started again, too.
        released: set when the process goes on without us; nothing is killed any more.
        has_model: whether a model is ready to answer.
        on_not_ready, on_kill, on_up: called from whatever thread notices.
    """

    def __init__(
        self,
        *,
        settings: KServeSettings | None = None,
        may_kill: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings or KServeSettings()
        self.state = Shutdown(limits=self.settings.limits)
        self.ending = self.refusing = False
        self.counts = Counts()
        self.bystanders: weakref.WeakSet[Any] = weakref.WeakSet()
        self.reloads: dict[str, asyncio.Event] = {}
        self.endpoints: list[Endpoint] = []
        self.drained, self.finished, self._told = (threading.Event() for _ in range(3))
        self.released = False
        self.on_not_ready: list[Callable[[Signal], None]] = []
        self.on_kill: list[Callable[[], None]] = []
        self.on_up: list[Callable[[], object]] = []
        self.has_model: Callable[[], bool] = lambda: True
        self.clock = clock
        self._seen, self._seen_at = 0, clock()
        self._may_kill, self._lock = may_kill, threading.Lock()
        self._steps: deque[Step] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None

    def signal(
        self,
        number: int,
        *,
        lame_duck: bool = True,
        limit_s: float | None = None,
        insists: bool = True,
    ) -> None:
        """Take notice of a signal, or with number 0 of a call; see `mlops_ext.shutdown.Signal`."""
        at, state = self.clock(), self.state
        if state.phase is Phase.ENDED and number and not self.released:
            # All is stopped, but something keeps the process: a signal still ends it.
            if insists and at - (state.began_at or 0.0) > state.limits.echo_s:
                self.state = replace(state, signal=number, killed=True)
                self._kill()
            return
        self.poll()
        signal = Signal(at=at, number=number, lame_duck=lame_duck, limit_s=limit_s, insists=insists)
        self.feed(signal)

    def feed(self, event: Event) -> None:
        """Pass *event* to the sequence, act on what cannot wait, and wake the loop for the rest."""
        self._apply(event)
        self.wake()

    def _apply(self, event: Event) -> None:
        with self._lock:
            moved = self.state.on(event)
            was_ending, self.state = self.ending, moved.state
            self.ending = moved.state.ending
            self._steps.extend(step for step in moved.steps if step is not Step.KILL)
        if self.ending and not was_ending and isinstance(event, Signal):
            for notify in self.on_not_ready:
                notify(event)
        if Step.KILL in moved.steps:
            self._kill()

    def in_flight(self) -> int:
        """Requests in flight in all endpoints."""
        return sum(endpoint.in_flight() for endpoint in self.endpoints)

    def seconds(self) -> float:
        """Seconds since the shutdown began; 0 before."""
        began = self.state.began_at
        return 0.0 if began is None else max(0.0, self.clock() - began)

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let *loop* take the steps from now on."""
        self._wake = asyncio.Event()
        self._loop = loop
        self.wake()

    def detach(self) -> None:
        """Forget the loop."""
        self._loop = None

    def wake(self) -> None:
        """Let the loop look at the queue of steps; from any thread."""
        loop, wake = self._loop, self._wake
        if loop is not None and wake is not None:
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                loop.call_soon_threadsafe(wake.set)

    def guard(self) -> float:
        """Take the steps that are due if the loop is stuck; seconds until the next check."""
        state = self.state
        kill_at = state.due.kill_at
        if kill_at == math.inf or self.released:
            return math.inf
        left = kill_at - self.clock()
        if left > 0:
            return left
        while self.state.phase is not Phase.ENDED:
            self.feed(Tick(at=max(self.clock(), kill_at), in_flight=1))
        self._kill()  # ended in time, but something keeps the process: an executor's thread
        return math.inf

    async def steps(self) -> AsyncIterator[Step]:
        """The steps for the loop, as they fall due, until the sequence has ended."""
        assert self._wake is not None
        while True:
            while self._steps:
                yield self._steps.popleft()
            if self.state.phase is Phase.ENDED:
                return
            due = self.state.wake_at - self.clock()
            if self.state.phase is Phase.DRAINING or self.state.limits.quiet_s:
                due = min(due, POLL_S)
            with contextlib.suppress(asyncio.TimeoutError):
                timeout = None if due == math.inf else max(0.0, due)
                await asyncio.wait_for(self._wake.wait(), timeout)
            self._wake.clear()
            tick = Tick(at=self.clock(), in_flight=self.in_flight(), quiet_s=self.quiet_s())
            self._apply(tick)

    def is_up(self) -> bool:
        """Whether every endpoint accepts requests."""
        return bool(self.endpoints) and all(endpoint.started for endpoint in self.endpoints)

    def poll(self) -> None:
        """Tell the sequence that the server accepts requests and has a model to answer them."""
        if self.state.phase is Phase.STARTING and self.is_up() and self.has_model():
            self.feed(Started(at=self.clock()))

    def quiet_s(self) -> float:
        """Seconds since the latest request came, as seen at this and earlier calls."""
        now, seen = self.clock(), self.counts.total(SEEN)
        if seen != self._seen:
            self._seen, self._seen_at = seen, now
        return now - self._seen_at

    def _tell_kill(self) -> None:
        log.error(
            "shutdown: cut off after %.2f s, %d requests in flight; status %d",
            self.seconds(), self.counts.total(IN_FLIGHT), self.state.exit_status,
        )  # fmt: skip
        self._told.set()

    def _kill(self) -> None:
        # By a thread, which may hang: another may hold the lock of the log, or nobody may read it.
        # `Thread.start` would wait for it, and so once more for Python's own lock.
        with contextlib.suppress(RuntimeError):  # no thread can be started any more
            _thread.start_new_thread(self._tell_kill, ())
            self._told.wait(LONGEST_TELL_S)
        if not self._may_kill:  # the process is not ours to end
            self.drained.set()
            self.finished.set()
            return
        for callback in self.on_kill:
            with contextlib.suppress(Exception):  # nothing may keep the process now
                callback()
        exit_now(self.state.exit_status, flush=False)
