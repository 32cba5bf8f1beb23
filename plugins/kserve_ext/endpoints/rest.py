"""The REST server of one process: uvicorn, stopped by the drain alone."""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
import weakref
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from kserve_ext.shutdown.drain import Drain, Endpoint
from mlops_ext.versions import in_range, installed_version

Around = Callable[[Awaitable[None]], Awaitable[None]]


_endpoints: weakref.WeakKeyDictionary[Any, RestEndpoint] = weakref.WeakKeyDictionary()


def endpoint_of(server: Any) -> RestEndpoint | None:
    """The endpoint of *server*, a ``uvicorn.Server``, or None if it is not in our care."""
    return _endpoints.get(server)


class RestEndpoint(Endpoint):
    """A ``uvicorn.Server`` that the drain ends.

    Args:
        server: the server, in our care from now on.
        drain: the shutdown of this process.
        around: gets the server's coroutine, and is awaited in its place.
    """

    def __init__(self, server: Any, drain: Drain, around: Around = lambda serving: serving) -> None:
        self.server, self.drain, self.around = server, drain, around
        self._done, self._served, self._serving = asyncio.Event(), asyncio.Event(), False
        self._sockets: list[Any] = []
        _endpoints[server] = self

    @property
    def started(self) -> bool:
        """Whether it listens."""
        return bool(self.server.started)

    def in_flight(self) -> int:
        """Requests not yet answered, and, once closed, connections not yet flushed."""
        state = self.server.server_state
        return len(state.tasks) + (len(state.connections) if self.server.should_exit else 0)

    def waiting(self) -> int:
        """Connections that wait to be accepted, and those with bytes that wait to be read."""
        sockets = [sock for each in getattr(self.server, "servers", ()) for sock in each.sockets]
        for connection in self.server.server_state.connections:
            cycle = getattr(connection, "cycle", connection)  # a WebSocket's has none
            # What is being answered may leave its bytes unread on purpose.
            if cycle is None or getattr(cycle, "response_complete", False):
                sockets.append(connection.transport.get_extra_info("socket"))
        with contextlib.suppress(ValueError, OSError), selectors.DefaultSelector() as selector:
            for sock in sockets:
                if sock is not None and sock.fileno() >= 0:
                    selector.register(sock.fileno(), selectors.EVENT_READ)
            return len(selector.select(0))
        return 0  # more than Windows can look at

    def requests(self) -> Collection[asyncio.Task[Any]]:
        """The tasks that answer requests now."""
        return set(self.server.server_state.tasks)

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
        """Cancel the requests in flight; each is then answered with 503."""
        tasks = list(self.server.server_state.tasks)
        loop = asyncio.get_running_loop()
        for task in tasks:
            # Not at once: a task that is cancelled before its first step answers nothing.
            loop.call_soon(task.cancel)
        return len(tasks)

    async def finish(self) -> None:
        """End the application's lifespan, and let `serve` return."""
        self.server.should_exit = True
        self._done.set()
        if self._serving:
            await self._served.wait()

    @property
    def keep_alive_s(self) -> int:
        """Seconds that an idle connection stays open; 0 to leave it as KServe has it."""
        version = installed_version("kserve") or ""
        return math.ceil(self.drain.settings.keep_alive_s) if in_range(version, "<0.18") else 0

    async def serve(self, sockets: list[Any] | None) -> None:
        """As uvicorn's own after its configuration is loaded, to the end of the drain."""
        server, self._sockets, self._serving = self.server, list(sockets or ()), True
        try:
            await server.startup(sockets=sockets)
            if self.drain.ending:  # the signal came while the socket was being opened
                await self.close()
            await server.main_loop()
            if not self.drain.ending:  # something else set should_exit: drain all the same
                self.drain.signal(0)
            await self._done.wait()
            await server.lifespan.shutdown()
        finally:
            self._served.set()
