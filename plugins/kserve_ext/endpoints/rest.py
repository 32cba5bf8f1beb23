"""The REST server of one process: uvicorn, told when to stop by the drain and by nobody else."""

from __future__ import annotations

import asyncio
import logging
import os
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from kserve_ext.endpoints.asgi import CLOSE, LameDuck
from kserve_ext.shutdown.drain import Drain
from mlops_ext.shutdown import Signal

log = logging.getLogger("uvicorn.error")  # for the lines that uvicorn itself writes there

Around = Callable[[Awaitable[None]], Awaitable[None]]


_endpoints: weakref.WeakKeyDictionary[Any, RestEndpoint]
_endpoints = weakref.WeakKeyDictionary()


def endpoint_of(server: Any) -> RestEndpoint | None:
    """The endpoint of *server*, a ``uvicorn.Server``, or None if it is not in our care."""
    return _endpoints.get(server)


class RestEndpoint:
    """A ``uvicorn.Server`` whose outermost application is `LameDuck`, and that the drain ends.

    Args:
        server: the server, in our care from now on.
        drain: the shutdown of this process.
        around: what is awaited in place of the server's coroutine; it gets that.
    """

    def __init__(self, server: Any, drain: Drain, around: Around = lambda serving: serving) -> None:
        self.server, self.drain, self.around = server, drain, around
        self.gate: LameDuck | None = None
        self._done = asyncio.Event()
        self._sockets: list[Any] = []
        drain.on_not_ready.append(self._close_after_answers)
        _endpoints[server] = self

    @property
    def started(self) -> bool:
        """Whether it listens."""
        return bool(self.server.started)

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
        """Let `serve` return."""
        self.server.should_exit = True
        self._done.set()

    def _close_after_answers(self, event: Signal) -> None:
        """Let the answers to requests in flight close their connections; from any thread.

        Those to later requests are `LameDuck`'s. Each connection holds its latest request.
        """
        del event
        for connection in list(self.server.server_state.connections):
            request = getattr(connection, "cycle", None)  # a WebSocket has none
            if request is not None and not request.response_started:
                request.default_headers = [*request.default_headers, CLOSE]

    def gate_of(self, app: Any) -> LameDuck:
        """The outermost application: *app* behind readiness and the last answer."""
        self.gate = LameDuck(app, self.drain)
        return self.gate

    async def serve(self, sockets: list[Any] | None) -> None:
        """As uvicorn's own after its configuration is loaded, to the end of the drain."""
        server, self._sockets = self.server, list(sockets or ())
        log.info("Started server process [%d]", os.getpid())
        await server.startup(sockets=sockets)
        if self.drain.ending:  # the signal came while the socket was being opened
            await self.close()
        await server.main_loop()
        if not self.drain.ending:  # something else set should_exit: drain all the same
            self.drain.signal(0)
        await self._done.wait()
        await server.lifespan.shutdown()
        log.info("Finished server process [%d]", os.getpid())
