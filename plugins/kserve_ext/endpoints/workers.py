"""Worker processes seen from their parent: kept alive, told to drain, waited for, never orphaned.

A worker is told what happens through a pipe, so that it can tell its parent's order from the
echo of a Ctrl-C, and knows by the pipe's end that its parent is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Protocol

from kserve_ext.shutdown.drain import Drain, log
from mlops_ext.shutdown import Phase, Signal

READY, SERVING, PING, DRAIN = "ready", "serving", "ping", "drain"

POLL_S = 0.1
"""How often the workers are looked at: a dead one is replaced within this time."""
PING_S = 1.0
"""How often a worker is asked whether it is alive."""
HUNG_S = 10.0
"""A worker that does not answer for so long is replaced: longer than any pause of a collector,
and twice what KServe itself waits."""
BOOT_S = 0.3
"""How long a worker that does not serve yet may take to end by itself."""


class _Process(Protocol):
    """What is used of ``multiprocessing.Process``."""

    pid: int | None

    def start(self) -> None: ...
    def is_alive(self) -> bool: ...
    def kill(self) -> None: ...
    def join(self, timeout: float | None = None) -> None: ...


@dataclass(slots=True)
class _Worker:
    process: _Process
    pipe: Connection
    ready: bool = False
    serving: bool = False
    notified_serving: bool = False
    asked_at: float = 0.0
    answered_at: float = 0.0
    sending: threading.Lock = field(default_factory=threading.Lock)
    receiving: threading.Lock = field(default_factory=threading.Lock)

    def notify(self, *message: object) -> None:
        with self.sending, contextlib.suppress(OSError, ValueError):  # it is gone
            self.pipe.send(message)

    def receive(self, now: float) -> None:
        """Take in what it has said, from any thread: a signal does not wait for the loop."""
        with self.receiving, contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                kind, *_ = self.pipe.recv()
                self.ready = self.ready or kind == READY
                self.serving = self.serving or kind == SERVING
                self.answered_at = now


class WorkersEndpoint:
    """The REST workers of a server.

    Args:
        launch: starts a worker that shares our socket, and gives the process and our pipe's end.
        count: how many.
        drain: the parent's.
        sockets: the listening sockets, closed here when accepting ends.
    """

    def __init__(
        self,
        launch: Callable[[], tuple[Any, Connection]],
        count: int,
        drain: Drain,
        sockets: list[Any],
    ) -> None:
        self._launch, self._count, self.drain = launch, count, drain
        self._sockets = sockets
        self.workers: list[_Worker] = []
        self._finish = False
        drain.on_not_ready.append(self._announce)
        drain.on_kill.append(self._kill_all)
        drain.on_serving.append(self._notify_serving)

    @property
    def started(self) -> bool:
        """Whether a worker serves."""
        return any(worker.ready for worker in self.workers)

    def launch_all(self) -> None:
        """Start the workers."""
        while len(self.workers) < self._count:
            self.workers.append(self._start())

    async def serve(self) -> None:
        """Look after the workers until all have ended."""
        self.launch_all()
        while not (self._finish and not self._alive()):
            for index, worker in enumerate(self.workers):
                self._look_after(index, worker)
            await asyncio.sleep(POLL_S if not self.drain.ending else POLL_S / 5)
        for worker in self.workers:
            worker.process.join(timeout=0)
            worker.pipe.close()

    def arrivals(self) -> int:
        """Workers that were asked."""
        now = self.drain.clock()
        for worker in self.workers:
            worker.receive(now)
        return sum(worker.serving for worker in self.workers)

    def has_clients(self) -> bool:
        """Whether a worker was asked."""
        return self.arrivals() > 0

    def in_flight(self) -> int:
        """Workers that still run."""
        return len(self._alive())

    async def close(self) -> None:
        """Let go of the listening sockets; the workers let go of theirs by their own clock."""
        for sock in self._sockets:
            sock.close()

    def refuse(self) -> int:
        """Nothing: each worker answers its requests by the same deadline."""
        return 0

    async def finish(self) -> None:
        """End workers that are still there."""
        self._finish = True
        for worker in self._alive():
            worker.process.kill()

    def _alive(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.process.is_alive()]

    def _start(self) -> _Worker:
        process, pipe = self._launch()
        now = self.drain.clock()
        log.info("worker %s started", process.pid)
        return _Worker(process=process, pipe=pipe, asked_at=now, answered_at=now)

    def _look_after(self, index: int, worker: _Worker) -> None:
        now = self.drain.clock()
        worker.receive(now)
        if worker.ready and self.drain.state.served and not worker.notified_serving:
            worker.notified_serving = True
            worker.notify(SERVING)
        if self.drain.ending:
            if not worker.ready and self.drain.seconds() > BOOT_S:
                worker.process.kill()
            return
        hung = worker.ready and now - worker.answered_at > HUNG_S
        if worker.process.is_alive() and not hung:
            if worker.ready and now - worker.asked_at > PING_S:
                worker.asked_at = now
                worker.notify(PING)
            return
        log.warning("worker %s %s; replaced", worker.process.pid, "hangs" if hung else "died")
        worker.process.kill()
        worker.process.join(timeout=1)
        worker.pipe.close()
        self.workers[index] = self._start()

    def _announce(self, event: Signal) -> None:
        """Pass the order on at once, from whatever thread it came to."""
        starting = self.drain.state.phase in (Phase.STARTING, Phase.STOPPING)
        limit = self.drain.state.limits.abort_s / 2 if starting else event.limit_s
        for worker in self.workers:
            worker.notify(DRAIN, event.number, event.lame_duck, limit)

    def _notify_serving(self) -> None:
        """Somebody asked one of us: every worker's end is a drain."""
        for worker in self.workers:
            worker.notify(SERVING)

    def _kill_all(self) -> None:
        for worker in self.workers:
            if worker.process.pid is not None and worker.process.is_alive():
                if os.name == "posix":
                    os.kill(worker.process.pid, signal.SIGKILL)
                else:
                    worker.process.kill()
