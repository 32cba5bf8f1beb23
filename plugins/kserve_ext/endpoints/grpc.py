"""The gRPC server of one process: counted, told apart from readiness, stopped after its start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc  # type: ignore[import-untyped]  # ships no types

from kserve_ext.shutdown.drain import Drain

READINESS = frozenset({"ServerReady", "ModelReady"})
LONGEST_START_S = 0.5
"""How long a stop waits for a start in progress: it takes a few milliseconds."""

Behaviour = Callable[[Any, Any], Awaitable[Any]]


class GrpcEndpoint:
    """A KServe ``GRPCServer``, changed on the instance before it starts.

    The ``grpc.aio`` server that it makes gets handlers that count, answer readiness with no
    while the process ends, and answer UNAVAILABLE past the deadline. ``stop()`` of grpc.aio while
    its ``start()`` runs crashes the interpreter, so it is only called after that has returned.
    """

    def __init__(self, server: Any, drain: Drain) -> None:
        self.server = server
        self.drain = drain
        self.tasks: set[asyncio.Task[Any]] = set()
        self.seen = 0
        self._aio: Any = None
        self._started = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        _notify_when_made(server, self._instrument)

    @property
    def started(self) -> bool:
        """Whether it accepts calls."""
        return self._started.is_set()

    def arrivals(self) -> int:
        """Calls seen since the start."""
        return self.seen

    def has_clients(self) -> bool:
        """Whether it was called."""
        return self.seen > 0

    def in_flight(self) -> int:
        """Calls not yet answered; once closed, also those that grpc has not handed over."""
        waiting = self._stopping is not None and not self._stopping.done()
        return max(len(self.tasks), int(waiting))

    async def close(self) -> None:
        """Refuse new calls; calls in flight go on."""
        if self._aio is None or self._stopping is not None:
            return
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._started.wait(), LONGEST_START_S)
        if not self._started.is_set():
            return  # never stop what is still starting; the process ends without
        state = self.drain.state
        grace = min(max(state.due.stop_at - self.drain.clock(), 0.0), state.limits.total_s)
        self._stopping = asyncio.create_task(self._aio.stop(grace))
        await asyncio.sleep(0)

    def refuse(self) -> int:
        """Cancel what is in flight; each call is then answered with UNAVAILABLE."""
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        return len(tasks)

    async def finish(self) -> None:
        """Let ``GRPCServer.start`` return."""
        await self.close()
        if self._stopping is not None:
            await self._aio.stop(None)
            await self._stopping

    def _instrument(self, aio: Any) -> None:
        self._aio = aio
        start, generic = aio.start, aio.add_generic_rpc_handlers
        registered: Any = getattr(aio, "add_registered_method_handlers", None)

        async def start_and_tell() -> None:
            try:
                await start()
            finally:
                self._started.set()

        def add_generic(handlers: Sequence[grpc.GenericRpcHandler]) -> None:
            generic(tuple(_Gate(handler, self) for handler in handlers))

        def add_registered(service: str, handlers: dict[str, Any]) -> None:
            gated = {name: self.gated(name, handler) for name, handler in handlers.items()}
            registered(service, gated)

        aio.start, aio.add_generic_rpc_handlers = start_and_tell, add_generic
        if registered is not None:
            aio.add_registered_method_handlers = add_registered

    def gated(self, name: str, handler: Any) -> Any:
        """*handler* with our layer around it; streams, which KServe has none of, stay as is."""
        if handler is None or handler.unary_unary is None:
            return handler
        inner: Behaviour = handler.unary_unary
        layer = self._readiness(inner) if name in READINESS else self._counted(inner)
        return grpc.unary_unary_rpc_method_handler(
            layer, handler.request_deserializer, handler.response_serializer
        )

    def _readiness(self, inner: Behaviour) -> Behaviour:
        async def answer(request: Any, context: Any) -> Any:
            response = await inner(request, context)
            if self.drain.ending:
                response.ready = False
            else:
                self.seen += 1
            return response

        return answer

    def _counted(self, inner: Behaviour) -> Behaviour:
        async def answer(request: Any, context: Any) -> Any:
            task = asyncio.current_task()
            assert task is not None
            self.tasks.add(task)
            self.seen += 1
            try:
                return await inner(request, context)
            except asyncio.CancelledError:
                if not self.drain.refusing:
                    raise
                context.set_code(grpc.StatusCode.UNAVAILABLE)
                context.set_details("the server shut down before the request was done")
                return None
            finally:
                self.tasks.discard(task)

        return answer


class _Gate(grpc.GenericRpcHandler):  # type: ignore[misc]  # of a package without types
    """A generic handler whose methods have our layer around them."""

    def __init__(self, inner: Any, endpoint: GrpcEndpoint) -> None:
        self._inner, self._endpoint = inner, endpoint
        self._known: dict[str, Any] = {}

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call."""
        method = handler_call_details.method
        if method not in self._known:
            handler = self._inner.service(handler_call_details)
            self._known[method] = self._endpoint.gated(method.rpartition("/")[2], handler)
        return self._known[method]


def _notify_when_made(server: Any, notify: Callable[[Any], None]) -> None:
    """Call *notify* with the grpc.aio server as soon as *server* stores it in ``_server``."""
    kind = type(server)

    def read(self: Any) -> Any:
        return vars(self).get("_server")

    def write(self: Any, value: Any) -> None:
        vars(self)["_server"] = value
        if value is not None:
            notify(value)

    watched = type(kind.__name__, (kind,), {"_server": property(read, write)})
    server.__class__ = watched
