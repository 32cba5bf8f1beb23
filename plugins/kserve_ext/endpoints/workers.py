"""Worker processes seen from their parent: kept alive, told to drain, waited for, never orphaned.

A worker is told what happens through a pipe, so that it can tell its parent's order from the
echo of a Ctrl-C, and knows by the pipe's end that its parent is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from kserve_ext.settings import KServeSettings
from kserve_ext.shutdown.console import makes_group
from kserve_ext.shutdown.counts import WIDTH, Counts
from kserve_ext.shutdown.drain import Drain, Endpoint, log
from mlops_ext.shutdown import Phase, Signal

READY, FAILED, PING, DRAIN = "ready", "failed", "ping", "drain"

POLL_S = 0.1  # how often the workers are looked at: a dead one is replaced within this time
PING_S = 1.0  # how often a worker is asked for a sign of life
BOOT_S = 0.3  # how long a worker that does not serve yet may take to end by itself
BUSY_SHARE = 0.01  # CPU time, as a share of the time, from which a silent worker counts as busy
MOST_FAILURES = 5
"""Starts in a row that may fail: a fault of the moment is over by then (15 s), another stays."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 8.0
"""Pauses before a worker that could not start is started again."""
KILL_MARGIN_S = 0.2
"""What is left of the last deadline once workers that have not ended are killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a worker gets of its parent: an end of their pipe, its settings, where to count."""

    pipe: Connection
    settings: KServeSettings
    counts: Counts


@dataclass(slots=True)
class _Worker:
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    failure: str = ""
    asked_at: float = 0.0
    answered_at: float = 0.0
    cpu_s: float = 0.0
    restart_at: float | None = None
    sending: threading.Lock = field(default_factory=threading.Lock)
    receiving: threading.Lock = field(default_factory=threading.Lock)

    def notify(self, *message: object) -> None:
        with self.sending, contextlib.suppress(OSError, ValueError):  # it is gone
            self.pipe.send(message)

    def receive(self, now: float) -> None:
        """Process the worker's messages, from any thread: a signal does not wait for the loop."""
        with self.receiving, contextlib.suppress(EOFError, OSError):
            while self.pipe.poll():
                kind, *details = self.pipe.recv()
                self.ready = self.ready or kind == READY
                self.failure = details[0] if kind == FAILED else self.failure
                self.answered_at = now


class WorkersEndpoint(Endpoint):
    """The REST workers of a server.

    Args:
        make: makes the process of a worker, which shares our socket. It also gets our ends of the
            pipes, which a fork has to close.
        count: how many.
        drain: the parent's.
        sockets: the listening sockets, closed here when accepting ends.
    """

    apart = True

    def __init__(
        self,
        make: Callable[[Share, list[Connection]], Any],
        count: int,
        drain: Drain,
        sockets: list[Any],
    ) -> None:
        self._make, self._count, self.drain = make, count, drain
        self._sockets = sockets
        drain.counts = Counts(multiprocessing.RawArray("q", (count + 1) * WIDTH))
        self.workers: list[_Worker] = []
        self._finish, self._failures = False, 0
        drain.on_not_ready.append(self._announce)
        drain.on_kill.append(self._kill_all)

    @property
    def started(self) -> bool:
        """Whether a worker serves, as far as the pipes tell now."""
        for worker in self.workers:
            worker.receive(self.drain.clock())
        return any(worker.ready for worker in self.workers)

    def launch_all(self) -> None:
        """Start the workers."""
        while len(self.workers) < self._count:
            self.workers.append(self._start(len(self.workers)))

    async def serve(self) -> None:
        """Look after the workers until all have ended."""
        makes_group.set(True)  # in this task alone
        self.launch_all()
        while not (self._finish and not self._alive()):
            for index, worker in enumerate(self.workers):
                self._look_after(index, worker)
            await asyncio.sleep(POLL_S if not self.drain.ending else POLL_S / 5)
        for worker in self.workers:
            worker.process.join(timeout=0)
            worker.pipe.close()

    def in_flight(self) -> int:
        """Workers that still run."""
        return len(self._alive())

    async def close(self) -> None:
        """Close the listening sockets; each worker closes its own when its drain says so."""
        for sock in self._sockets:
            sock.close()

    async def finish(self) -> None:
        """Wait for workers that stop their models; end those that are late, or serve on."""
        self._finish = True
        drain = self.drain
        while drain.ending and self._alive():
            if drain.clock() > drain.state.due.kill_at - KILL_MARGIN_S:
                break
            await asyncio.sleep(POLL_S / 5)
        self._kill_all()
        for row in range(1, self._count + 1):  # of one that has ended by itself it is nothing
            drain.counts.lose(row)

    def _alive(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.process.is_alive()]

    def _start(self, index: int) -> _Worker:
        pipe, theirs = multiprocessing.Pipe()
        counts, now = Counts(self.drain.counts.numbers, index + 1), self.drain.clock()
        share = Share(pipe=theirs, settings=self.drain.settings, counts=counts)
        process = self._make(share, [pipe, *(worker.pipe for worker in self.workers)])
        process.start()
        theirs.close()
        log.info("worker %s started", process.pid)
        return _Worker(process=process, pipe=pipe, asked_at=now, answered_at=now)

    def _look_after(self, index: int, worker: _Worker) -> None:
        now = self.drain.clock()
        if worker.restart_at is not None:
            if now >= worker.restart_at and not self.drain.ending:
                self.workers[index] = self._start(index)
            return
        worker.receive(now)
        if worker.ready:
            self._failures = 0
        if self.drain.ending:
            if not worker.ready and self.drain.seconds() > BOOT_S:
                worker.process.kill()
            return
        hung = self._is_hung(worker, now)
        if worker.process.is_alive() and not hung:
            is_due = now - worker.asked_at > PING_S
            if worker.ready and is_due and worker.answered_at >= worker.asked_at:
                worker.asked_at, worker.cpu_s = now, cpu_s(worker.process.pid)
                worker.notify(PING)
            return
        worker.process.kill()
        worker.process.join(timeout=1)
        worker.pipe.close()
        self.drain.counts.lose(index + 1)
        if worker.ready:
            log.warning("worker %s %s; replaced", worker.process.pid, ("died", "hangs")[hung])
            worker.restart_at = now
        else:
            worker.restart_at = now + self._pause_after_failure(worker)

    def _is_hung(self, worker: _Worker, now: float) -> bool:
        """Whether *worker* owes a sign of life for too long and has used no CPU since."""
        patience_s = self.drain.settings.worker_timeout_s
        silent_s = now - worker.asked_at if worker.answered_at < worker.asked_at else 0.0
        if not (worker.ready and 0 < patience_s < silent_s):
            return False
        used_s = cpu_s(worker.process.pid)
        if used_s - worker.cpu_s > patience_s * BUSY_SHARE:  # it computes: look again later
            worker.asked_at, worker.cpu_s = now, used_s
            return False
        return True

    def _pause_after_failure(self, worker: _Worker) -> float:
        """Seconds until a worker that could not start is started again.

        Raises:
            RuntimeError: too many could not, one after the other.
        """
        self._failures += 1
        why = worker.failure or f"it ended with status {worker.process.exitcode}"
        log.error("worker %s did not start: %s", worker.process.pid, why)
        if self._failures >= MOST_FAILURES:
            raise RuntimeError(
                f"{self._failures} workers in a row did not start, the last because {why};"
                " see the tracebacks above"
            )
        return float(min(FIRST_PAUSE_S * 2 ** (self._failures - 1), LONGEST_PAUSE_S))

    def _announce(self, event: Signal) -> None:
        """Pass the order on at once, from whatever thread it came to."""
        lame_duck = event.lame_duck and self.drain.state.phase is not Phase.STOPPING
        for worker in self.workers:
            worker.notify(DRAIN, event.number, lame_duck, event.limit_s)

    def _kill_all(self) -> None:
        for worker in self.workers:
            worker.process.kill()


def cpu_s(pid: int | None) -> float:
    """CPU seconds that process *pid* has used; 0 if the system does not say."""
    import psutil  # KServe needs it, too

    try:
        times = psutil.Process(pid).cpu_times()
    except (psutil.Error, OSError):
        return 0.0
    return float(times.user + times.system)
