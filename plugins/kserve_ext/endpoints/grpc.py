"""The gRPC server of one process: counted, told apart from readiness, stopped after its start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

import grpc  # type: ignore[import-untyped]  # ships no types

from kserve_ext.endpoints import channelz
from kserve_ext.shutdown.counts import DRAINED, IN_FLIGHT, LOST, REFUSED, SEEN
from kserve_ext.shutdown.drain import Drain, Endpoint
from kserve_ext.shutdown.models import until_loaded

READINESS = frozenset({"ServerReady", "ModelReady"})
MANAGEMENT = frozenset({"RepositoryModelLoad", "RepositoryModelUnload"})
"""Calls that need no model: an unload does not wait for them."""
SERVICE = b"inference.GRPCInferenceService"
WATCH_S = 0.1
"""How often the status of a watched service is looked at: its clients act within seconds."""
LONGEST_START_S = 0.5  # how long a stop waits for a start in progress: it takes a few milliseconds

Behaviour = Callable[[Any, Any], Awaitable[Any]]

current: ContextVar[GrpcEndpoint | None] = ContextVar("current", default=None)
"""The endpoint for the gRPC server that is made next in this context."""


class GrpcEndpoint(Endpoint):
    """The gRPC server that KServe makes while this is `current`, behind a gate.

    Its handlers count, answer readiness with no while the process ends, and answer UNAVAILABLE
    past the deadline. ``stop()`` of grpc.aio while its ``start()`` runs crashes the interpreter,
    so it is only called after that has returned; it cancels calls that Python has not seen.
    """

    def __init__(self, drain: Drain) -> None:
        self.drain = drain
        self.tasks: set[asyncio.Task[Any]] = set()
        self._taken = 0  # calls that a handler of ours has begun and not ended
        self._number, self._older = 0, channelz.newest_server()
        self._aio: Any = None
        self._started = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        current.set(self)

    def adopt(self, aio: Any) -> Any:
        """*aio*, a ``grpc.aio`` server that was just made, as KServe is to see it."""
        self._aio, newest = aio, channelz.newest_server()
        self._number = newest if newest > self._older else 0
        return _GatedServer(aio, self)

    @property
    def started(self) -> bool:
        """Whether it accepts calls."""
        return self._started.is_set()

    def in_flight(self) -> int:
        """Calls not yet answered; once closed, also those that grpc has not handed over."""
        waiting = self._stopping is not None and not self._stopping.done()
        return max(len(self.tasks), int(waiting))

    def waiting(self) -> int:
        """Calls that gRPC has accepted and no handler has seen yet."""
        return max(0, channelz.unanswered(self._number) - self._taken) if self._number else 0

    def requests(self) -> Collection[asyncio.Task[Any]]:
        """The tasks that answer calls now."""
        return set(self.tasks)

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
        """Cancel the calls in flight; each is then answered with UNAVAILABLE."""
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

    async def start(self) -> None:
        """Start the server, and say so."""
        self._aio.add_generic_rpc_handlers([_Health(self)])
        try:
            await self._aio.start()
        finally:
            self._started.set()

    def gated(self, name: str, handler: Any) -> Any:
        """*handler* with our layer around it; streams, which KServe has none of, stay as is."""
        if handler is None or handler.unary_unary is None:
            return handler
        layer = self._counted(handler.unary_unary, name)
        return grpc.unary_unary_rpc_method_handler(
            layer, handler.request_deserializer, handler.response_serializer
        )

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Count a call as taken from gRPC while this lasts."""
        self._taken += 1
        try:
            yield
        finally:
            self._taken -= 1

    def _counted(self, inner: Behaviour, name: str) -> Behaviour:
        drain, counts, tasks = self.drain, self.drain.counts, self.tasks
        asks_readiness, is_request = name in READINESS, name not in READINESS | MANAGEMENT
        numbers, seen, in_flight = counts.numbers, counts.place(SEEN), counts.place(IN_FLIGHT)
        loop = asyncio.get_running_loop()  # asked for once: Python asks the system each time

        async def answer(request: Any, context: Any) -> Any:
            task, column = asyncio.current_task(loop), DRAINED
            assert task is not None
            tasks.add(task)
            self._taken += 1
            numbers[seen] += not (asks_readiness and drain.ending)
            numbers[in_flight] += is_request
            if not is_request:
                drain.bystanders.add(task)
            try:
                if drain.reloads and is_request:
                    await until_loaded(drain, getattr(request, "model_name", "").__eq__)
                response = await inner(request, context)
                if asks_readiness and drain.ending:
                    response.ready = False
            except asyncio.CancelledError:
                column = LOST
                if not drain.refusing:
                    raise
                column = REFUSED
                context.set_code(grpc.StatusCode.UNAVAILABLE)
                context.set_details("the server shut down before the request was done")
                return None
            else:
                return response
            finally:
                tasks.discard(task)
                self._taken -= 1
                numbers[in_flight] -= is_request
                if drain.ending:
                    counts.add(column, is_request)

        return answer


class _GatedServer:
    """A ``grpc.aio`` server whose handlers have a layer of an endpoint around them."""

    def __init__(self, aio: Any, endpoint: GrpcEndpoint) -> None:
        self._aio, self._endpoint = aio, endpoint
        self.start = endpoint.start

    def __getattr__(self, name: str) -> Any:
        return getattr(self._aio, name)

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """As grpc's."""
        self._aio.add_generic_rpc_handlers([_Gate(each, self._endpoint) for each in handlers])

    def add_registered_method_handlers(self, service: str, handlers: dict[str, Any]) -> None:
        """As grpc's (1.64 and later)."""
        gated = {name: self._endpoint.gated(name, each) for name, each in handlers.items()}
        self._aio.add_registered_method_handlers(service, gated)


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


class _Health(grpc.GenericRpcHandler):  # type: ignore[misc]  # of a package without types
    """The service ``grpc.health.v1.Health``: what Kubernetes' gRPC probes and Envoy ask.

    Its messages are two bytes, written here by hand: the package that has them is not among
    KServe's needs. Watch, which only clients' own balancing uses, ends when the server does.
    """

    def __init__(self, endpoint: GrpcEndpoint) -> None:
        self._drain, self._taken = endpoint.drain, endpoint.taken

    def service(self, handler_call_details: Any) -> Any:
        """The handler of a call, or None for other services."""
        if handler_call_details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(self._check)
        if handler_call_details.method == "/grpc.health.v1.Health/Watch":
            return grpc.unary_stream_rpc_method_handler(self._watch)
        return None

    def _status(self) -> bytes:
        serves = self._drain.has_model() and not self._drain.ending
        return b"\x08\x01" if serves else b"\x08\x02"  # field 1: SERVING, NOT_SERVING

    async def _check(self, request: bytes, context: Any) -> bytes:
        with self._taken():
            if request[2:] not in {b"", SERVICE}:  # field 1: the name of a service
                await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
            return self._status()

    async def _watch(self, _: bytes, __: Any) -> AsyncIterator[bytes]:
        latest = b""
        with self._taken():
            while not (latest and self._drain.ending):
                if (status := self._status()) != latest:
                    yield status
                    latest = status
                await asyncio.sleep(WATCH_S)
            yield self._status()
