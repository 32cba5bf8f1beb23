"""The outermost ASGI layer of a model server: readiness, closing connections, the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from kserve_ext.shutdown.counts import DRAINED, IN_FLIGHT, LOST, REFUSED
from kserve_ext.shutdown.drain import Drain

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

READINESS = re.compile(
    r"(/v2/health/ready|/v2/models/[^/]+(/versions/[^/]+)?/ready"
    r"|(/openai)?/v1/models/[^/:]+)/?"
)
"""Paths that answer "may I get traffic": KServe's own probes and its clients ask there."""
ASIDE = re.compile(r"/metrics$|/v2/repository/")
"""Paths of scrapes and of model management: no requests to a model, so they are not counted."""
RETRY_AFTER_S = 1  # what a refused client is told to wait: another replica answers at once
CLOSE = (b"connection", b"close")
CUT_OFF = "the server shut down before the request was done"


class LameDuck:
    """An ASGI application around another one.

    Without a signal it costs a request one frame, one object and three counts. After a signal
    readiness says 503, each answer closes its connection, and a request that is cancelled at the
    deadline is answered with 503, a stream of events with an error.
    """

    def __init__(self, app: App, drain: Drain) -> None:
        self.app = app
        self.drain = drain
        self.seen = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one request."""
        drain = self.drain
        is_http = scope["type"] == "http"
        is_request = is_http and not ASIDE.match(scope["path"])
        if not is_request:
            drain.bystanders.add(asyncio.current_task())
        if not is_http:
            await self.app(scope, receive, send)
            return
        answer = _Answer(send, drain, scope)
        if drain.ending and _asks_readiness(scope):
            await answer.refuse("the server is shutting down")
            return
        self.seen += is_request
        counts, column = drain.counts, DRAINED
        counts.add(IN_FLIGHT, is_request)
        try:
            await self.app(scope, receive, answer)
        except asyncio.CancelledError:
            column = LOST
            if not drain.refusing:
                raise
            with contextlib.suppress(RuntimeError):  # all of the answer was sent
                await answer.cut_off()
                column = REFUSED
                return
            raise
        finally:
            counts.add(IN_FLIGHT, -is_request)
            if drain.ending:
                counts.add(column, is_request)


def _asks_readiness(scope: Any) -> bool:
    return scope["method"] in {"GET", "HEAD"} and READINESS.fullmatch(scope["path"]) is not None


class _Answer:
    """The ``send`` of a request; it remembers what has been begun."""

    __slots__ = ("drain", "headers", "scope", "send")

    def __init__(self, send: Send, drain: Drain, scope: Any) -> None:
        self.send, self.drain, self.scope = send, drain, scope
        self.headers: Iterable[tuple[bytes, bytes]] | None = None

    def __call__(self, message: Message) -> Awaitable[None]:
        """Send *message*; while the server ends, the answer closes its connection."""
        if message["type"] == "http.response.start":
            headers = self.headers = message.get("headers", ())
            if self.drain.ending and str(self.scope.get("http_version", "1.1")).startswith("1"):
                message = {**message, "headers": [*headers, CLOSE]}
        return self.send(message)

    async def refuse(self, error: str) -> None:
        """503 with a JSON body, and when to come back."""
        body = json.dumps({"error": error}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"retry-after", str(RETRY_AFTER_S).encode()),
        ]
        await self({"type": "http.response.start", "status": 503, "headers": headers})
        await self({"type": "http.response.body", "body": body})

    async def cut_off(self) -> None:
        """End a request at the deadline, in the form of what was sent of its answer.

        Raises:
            RuntimeError: the answer has begun, and it is no stream of events.
        """
        if self.headers is None:
            await self.refuse(CUT_OFF)
            return
        kinds = [value for name, value in self.headers if name.lower() == b"content-type"]
        if not any(kind.startswith(b"text/event-stream") for kind in kinds):
            raise RuntimeError("the answer has begun already")
        # Clients of OpenAI's protocol look at `error`, others at `finish_reason`.
        error = {"message": CUT_OFF, "type": "server_shutting_down", "code": 503}
        choice = {"index": 0, "delta": {}, "text": "", "finish_reason": "error"}
        event = json.dumps({"error": error, "choices": [choice]})
        body = f"event: error\ndata: {event}\n\n".encode()
        await self({"type": "http.response.body", "body": body})
