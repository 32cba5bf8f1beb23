"""The REST server of one process: uvicorn, told when to stop by the drain and by nobody else."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from kserve_ext.endpoints.asgi import CLOSE, LameDuck
from kserve_ext.shutdown.drain import Drain
from mlops_ext.shutdown import Signal


class RestEndpoint:
    """A ``uvicorn.Server``, changed on the instance before it serves.

    Its signal handling is switched off, the outermost application becomes `LameDuck`, and its
    own shutdown, which cancels after a grace of its own, gives way to the drain's.
    """

    def __init__(self, server: Any, drain: Drain) -> None:
        self.server = server
        self.drain = drain
        self.gate: LameDuck | None = None
        self._done = asyncio.Event()
        self._sockets: list[Any] = []
        self._startup, self._lifespan_ended = server.startup, False
        server.capture_signals = contextlib.nullcontext  # uvicorn 0.29 and later
        server.install_signal_handlers = lambda: None  # before
        server.startup = self._start
        server.shutdown = self._shut_down
        drain.on_not_ready.append(self._close_after_answers)

    @property
    def started(self) -> bool:
        """Whether it listens."""
        return self.gate is not None and bool(self.server.started)

    def arrivals(self) -> int:
        """Requests seen since the start."""
        return self.gate.seen if self.gate else 0

    def has_clients(self) -> bool:
        """Whether it was asked, or somebody is connected to ask."""
        return bool(self.arrivals() or (self.gate and self.server.server_state.connections))

    def in_flight(self) -> int:
        """Requests not yet answered, and, once closed, connections not yet flushed."""
        state = self.server.server_state
        return len(state.tasks) + (len(state.connections) if self.server.should_exit else 0)

    async def close(self) -> None:
        """Close the listening sockets and every connection that carries no request."""
        self.server.should_exit = True
        for listener in getattr(self.server, "servers", ()):
            listener.close()
        for sock in self._sockets:
            sock.close()
        for connection in list(self.server.server_state.connections):
            connection.shutdown()

    def refuse(self) -> int:
        """Cancel what is in flight; each request is then answered with 503."""
        tasks = list(self.server.server_state.tasks)
        loop = asyncio.get_running_loop()
        for task in tasks:
            # Not at once: a task that is cancelled before its first step answers nothing.
            loop.call_soon(task.cancel)
        return len(tasks)

    async def finish(self) -> None:
        """Let uvicorn's ``serve`` return."""
        self.server.should_exit = True
        self._done.set()
        if self.gate is not None:  # before 0.22 uvicorn leaves it open after an early end
            await self._end_lifespan()

    def _close_after_answers(self, event: Signal) -> None:
        """Let the answers to requests in flight close their connections; from any thread.

        Those to later requests are `LameDuck`'s. Each connection holds its latest request.
        """
        del event
        for connection in list(self.server.server_state.connections):
            request = getattr(connection, "cycle", None)  # a WebSocket has none
            if request is not None and not request.response_started:
                request.default_headers = [*request.default_headers, CLOSE]

    async def _start(self, sockets: list[Any] | None = None) -> None:
        self._sockets = list(sockets or ())
        config = self.server.config
        gate = LameDuck(config.loaded_app, self.drain)
        config.loaded_app = gate
        await self._startup(sockets=sockets)
        self.gate = gate
        if self.drain.ending:  # the signal came while the socket was being opened
            await self.close()

    async def _shut_down(self, sockets: list[Any] | None = None) -> None:
        """In place of uvicorn's: the drain closes; this waits, and ends the lifespan."""
        del sockets  # closed by `close`
        if not self.drain.ending:  # something else set should_exit: drain all the same
            self.drain.signal(0)
        await self._done.wait()
        await self._end_lifespan()

    async def _end_lifespan(self) -> None:
        if not self._lifespan_ended and not self.server.force_exit:
            self._lifespan_ended = True
            await self.server.lifespan.shutdown()
