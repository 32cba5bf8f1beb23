"""The outermost ASGI layer of a model server: readiness, closing connections, the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from kserve_ext.shutdown.drain import Drain

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

READINESS = re.compile(
    r"/v2/health/ready|/v2/models/[^/]+(/versions/[^/]+)?/ready|/v1/models/[^/:]+"
)
"""Paths that answer "may I get traffic": KServe's own probes and its clients ask there."""
RETRY_AFTER_S = 1
"""What a refused client is told to wait: another replica answers at once."""
CLOSE = (b"connection", b"close")


class LameDuck:
    """An ASGI application around another one.

    Without a signal it costs a request one frame and a count: who counts what is in flight is
    uvicorn. After a signal readiness says 503, which is not counted, each answer closes its
    connection, and a request that is cancelled past the deadline is answered with 503.
    """

    def __init__(self, app: App, drain: Drain) -> None:
        self.app = app
        self.drain = drain
        self.seen = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.drain.ending:
            if str(scope.get("http_version", "1.1")).startswith("1"):
                send = _closing(send)
            if scope["method"] == "GET" and READINESS.fullmatch(scope["path"]):
                await _answer(send, "the server is shutting down")
                return
        self.seen += 1
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError:
            if not self.drain.refusing:
                raise
            with contextlib.suppress(RuntimeError):  # its answer has begun already
                await _answer(send, "the server shut down before the request was done")
                return
            raise


def _closing(send: Send) -> Send:
    """*send* that adds ``Connection: close``."""

    def answer(message: Message) -> Awaitable[None]:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), CLOSE]}
        return send(message)

    return answer


async def _answer(send: Send, error: str) -> None:
    """503 with a JSON body, and when to come back."""
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(RETRY_AFTER_S).encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})
