"""An open-loop load generator for model servers: REST v1, v2 and gRPC, kept and new connections.

Requests leave at their time whether or not earlier ones were answered.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

KINDS = ("v1-kept", "v1-new", "v2-kept", "v2-new", "grpc-kept", "grpc-new")
TIMEOUT_S = 30.0
STOPPED = 0
"""What a model of ours answers once its ``stop()`` has run; 1 before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of one request.

    Attributes:
        kind: one of `KINDS`.
        outcome: "ok", "stopped" (answered by a stopped model) or "lost".
        detail: why it was lost, or "".
        sent_at: when it was due, on the monotonic clock.
        seconds: from then to its answer.
    """

    kind: str
    outcome: str
    detail: str
    sent_at: float
    seconds: float


@dataclass(slots=True)
class Client:
    """A client of one server; its pools are what a gateway keeps.

    Attributes:
        http_port, grpc_port: where the server listens on this machine.
        model: the model's name.
        instance: the number that is sent.
    """

    http_port: int
    grpc_port: int
    model: str = "m"
    instance: float = 0.0
    _rest_clients: dict[bool, httpx.AsyncClient] = field(default_factory=dict)
    _channel: Any = None

    async def ask(self, kind: str) -> int:
        """Send one request; the model's number.

        Raises:
            httpx.HTTPError, ValueError, RuntimeError, grpc.RpcError: it was lost.
        """
        protocol, _, connection = kind.partition("-")
        if protocol == "grpc":
            return await self._grpc(kept=connection == "kept")
        return await self._rest(protocol, kept=connection == "kept")

    async def close(self) -> None:
        """Close what is pooled."""
        for client in self._rest_clients.values():
            await client.aclose()
        if self._channel is not None:
            await self._channel.close()

    async def _rest(self, protocol: str, *, kept: bool) -> int:
        if not self._rest_clients:
            self._rest_clients = {True: _client(kept=True), False: _client(kept=False)}
        path, document = _rest_request(protocol, self.model, self.instance)
        url = f"http://127.0.0.1:{self.http_port}{path}"
        answer = await self._rest_clients[kept].post(url, json=document)
        if answer.status_code != 200:  # HTTP's own number
            raise RuntimeError(f"HTTP {answer.status_code}")
        found = answer.json()
        return int(found["predictions"][0] if protocol == "v1" else found["outputs"][0]["data"][0])

    async def _grpc(self, *, kept: bool) -> int:
        import grpc  # type: ignore[import-untyped]  # ships no types

        address = f"127.0.0.1:{self.grpc_port}"
        # A pool of its own per channel: channels of one process share connections otherwise.
        options = [("grpc.use_local_subchannel_pool", 1)]
        if kept:
            if self._channel is None:
                self._channel = grpc.aio.insecure_channel(address, options=options)
            return await _infer(self._channel, self.model, self.instance)
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            return await _infer(channel, self.model, self.instance)


@dataclass(slots=True)
class Load:
    """Requests at a steady rate.

    Attributes:
        client: who sends them.
        rate: requests a second.
        kinds: taken in turn.
        answers: what became of them.
        sent: how many were sent.
    """

    client: Client
    rate: float
    kinds: Sequence[str] = KINDS
    answers: list[Answer] = field(default_factory=list)
    sent: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, until: Callable[[], bool]) -> None:
        """Send until *until* says so, and wait for every answer."""
        begun = time.monotonic()
        while not until():
            due = begun + self.sent / self.rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            task = asyncio.create_task(self._one(self.kinds[self.sent % len(self.kinds)], due))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            self.sent += 1
        await asyncio.gather(*self._tasks)

    def count(self) -> Counter[str]:
        """Answers by outcome."""
        return Counter(answer.outcome for answer in self.answers)

    def why(self) -> Counter[str]:
        """Lost answers by reason."""
        return Counter(f"{a.kind}: {a.detail}" for a in self.answers if a.outcome == "lost")

    async def _one(self, kind: str, due: float) -> None:
        detail = ""
        try:
            number = await asyncio.wait_for(self.client.ask(kind), TIMEOUT_S)
            outcome = "stopped" if number == STOPPED else "ok"
        except Exception as error:  # each failure of a request is a datum here
            outcome, detail = "lost", _describe(error)
        took = time.monotonic() - due
        self.answers.append(
            Answer(kind=kind, outcome=outcome, detail=detail, sent_at=due, seconds=took)
        )


async def get(port: int, path: str) -> tuple[int, httpx.Headers, bytes]:
    """Status, headers and body of a GET on a connection of its own.

    Raises:
        OSError: nothing answered.
    """
    async with _client(kept=False) as client:
        try:
            answer = await client.get(f"http://127.0.0.1:{port}{path}")
        except httpx.TransportError as error:
            raise ConnectionError(f"no answer: {type(error).__name__}") from error
    return answer.status_code, answer.headers, answer.content


def _client(*, kept: bool) -> httpx.AsyncClient:
    """A client without proxies or TLS, whose pool keeps connections open if *kept*."""
    limits = httpx.Limits(max_keepalive_connections=None if kept else 0)
    headers = {} if kept else {"Connection": "close"}
    # The certificates, which take longest to load, are for TLS alone.
    return httpx.AsyncClient(
        limits=limits,
        headers=headers,
        timeout=TIMEOUT_S,
        trust_env=False,
        verify=False,
    )


def _rest_request(protocol: str, model: str, instance: float) -> tuple[str, dict[str, Any]]:
    if protocol == "v1":
        return f"/v1/models/{model}:predict", {"instances": [instance]}
    tensor = {"name": "i", "shape": [1], "datatype": "FP64", "data": [instance]}
    return f"/v2/models/{model}/infer", {"inputs": [tensor]}


async def _infer(channel: Any, model: str, instance: float) -> int:
    from kserve.protocol.grpc import (  # type: ignore[import-untyped]  # ships no types
        grpc_predict_v2_pb2 as messages,
    )
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as service

    tensor = messages.ModelInferRequest.InferInputTensor(name="i", shape=[1], datatype="FP64")
    tensor.contents.fp64_contents.append(instance)
    request = messages.ModelInferRequest(model_name=model, inputs=[tensor])
    answer = await service.GRPCInferenceServiceStub(channel).ModelInfer(request)
    return int(answer.outputs[0].contents.int_contents[0])


def _describe(error: BaseException) -> str:
    code = getattr(error, "code", None)
    if callable(code):
        with contextlib.suppress(Exception):  # a client error without a status
            return f"{code().name}: {str(error.details())[:80]}"  # type: ignore[attr-defined]  # grpc.aio.AioRpcError
    return f"{type(error).__name__}: {str(error)[:80]}"
