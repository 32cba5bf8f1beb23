"""The outermost ASGI layer of a model server: readiness, closing connections, the last answer."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from kserve_ext.shutdown.counts import DRAINED, IN_FLIGHT, LOST, OTHERS, REFUSED, SEEN
from kserve_ext.shutdown.drain import Drain
from kserve_ext.shutdown.models import until_loaded
from mlops_ext.settings import environment

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

# Below what KServe puts OpenAI's routes, as its own variable says.
OPENAI = environment().get("KSERVE_OPENAI_ROUTE_PREFIX", "/openai").strip("/")
READINESS = re.compile(
    r"(/v2/health/ready|/v2/models/[^/]+(/versions/[^/]+)?/ready"
    rf"|(/{re.escape(OPENAI)})?/v1/models/[^/:]+)/?"
)
"""Paths that answer "may I get traffic": KServe's own probes and its clients ask there."""
ASIDE = frozenset({"/metrics", "/v2/repository/"})
"""How paths of scrapes and of model management begin: no requests to a model, and not counted."""
LONGEST_ASIDE = max(map(len, ASIDE))
RETRY_AFTER_S = 1  # what a refused client is told to wait: another replica answers at once
CLOSE = (b"connection", b"close")
CUT_OFF = "the server shut down before the request was done"


def gated(app: App, drain: Drain) -> App:  # noqa: C901  # flat: each function costs every request
    """*app* behind readiness, the counts and the last answer.

    Without a signal it costs a request less than a microsecond: a frame, a closure and a count.
    After a signal readiness says 503, each answer closes its connection, and a request that is
    cancelled at the deadline is answered with 503, a stream of events with an error.
    """
    counts, looks_for_quiet = drain.counts, drain.settings.quiet_s > 0
    numbers, seen = counts.numbers, counts.place(SEEN)
    requests, others = counts.place(IN_FLIGHT), counts.place(OTHERS)

    async def serve(scope: Any, receive: Receive, send: Send) -> None:  # noqa: C901
        if scope["type"] != "http":
            drain.bystanders.add(asyncio.current_task())
            await app(scope, receive, send)
            return
        start: Message | None = None

        def answer(message: Message) -> Awaitable[None]:
            nonlocal start
            if start is None:
                start = message
                if drain.ending and str(scope.get("http_version", "1.1")).startswith("1"):
                    message = {**message, "headers": [*message.get("headers", ()), CLOSE]}
            return send(message)

        path, place, outcome = scope["path"], requests, DRAINED
        if path[:LONGEST_ASIDE] in ASIDE:
            place = others
            drain.bystanders.add(asyncio.current_task())
        elif drain.ending and _asks_readiness(scope):
            await _refuse(answer, "the server is shutting down")
            return
        elif looks_for_quiet:
            numbers[seen] += 1
        numbers[place] += 1
        try:
            if drain.reloads:
                await until_loaded(drain, functools.partial(_uses, scope))
            await app(scope, receive, answer)
        except asyncio.CancelledError:
            outcome = await _cut_off(answer, start) if drain.refusing else LOST
            if outcome == LOST:
                raise
        finally:
            numbers[place] -= 1
            if drain.ending:
                counts.add(outcome, place == requests)

    return serve


def _asks_readiness(scope: Any) -> bool:
    return scope["method"] in {"GET", "HEAD"} and READINESS.fullmatch(scope["path"]) is not None


def _uses(scope: Any, model: str) -> bool:
    """Whether a request may be one to *model*; OpenAI's protocol and others name it in the body."""
    path = scope["path"]
    if scope["method"] != "POST" or path[:LONGEST_ASIDE] in ASIDE:
        return False
    named = re.search(rf"/models/{re.escape(model)}([:/]|$)", path)
    return "/models/" not in path or named is not None


async def _refuse(send: Send, error: str) -> None:
    """503 with a JSON body, and when to come back."""
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"retry-after", str(RETRY_AFTER_S).encode()),
    ]
    await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _cut_off(send: Send, start: Message | None) -> int:
    """End a request in the form of the answer that *start* began, if any; what became of it."""
    headers = () if start is None else start.get("headers", ())
    kinds = [value for name, value in headers if name.lower() == b"content-type"]
    if start is None:
        await _refuse(send, CUT_OFF)
        return REFUSED
    if not any(kind.startswith(b"text/event-stream") for kind in kinds):
        return LOST
    # Clients of OpenAI's protocol look at `error`, others at `finish_reason`.
    error = {"message": CUT_OFF, "type": "server_shutting_down", "code": 503}
    choice = {"index": 0, "delta": {}, "text": "", "finish_reason": "error"}
    event = {"error": error, "choices": [choice]}
    body = f"event: error\ndata: {json.dumps(event)}\n\n".encode()
    with contextlib.suppress(RuntimeError):  # all of the answer was sent
        await send({"type": "http.response.body", "body": body})
        return REFUSED
    return LOST
