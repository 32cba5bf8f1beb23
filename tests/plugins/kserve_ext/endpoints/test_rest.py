"""Requests past the deadline of a drain, in a uvicorn of this process."""

import asyncio

import pytest
import uvicorn

from kserve_ext.endpoints.rest import RestEndpoint
from kserve_ext.plugin import INTERCEPTIONS
from kserve_ext.shutdown.drain import Drain
from mlops_ext.patching import PatchSet

pytestmark = pytest.mark.timeout(60)


async def answers_of(http):
    """The heads of two pipelined answers; the deadline passes when the second's task is made."""
    drain = Drain(may_kill=False)

    async def app(scope, receive, send):
        if scope["path"] == "/second":
            await asyncio.Event().wait()
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body"})  # here uvicorn goes on to the second
        drain.ending = drain.refusing = True
        endpoint.refuse()

    config = uvicorn.Config(app, port=0, http=http, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    endpoint = RestEndpoint(server, drain)
    (patch,) = (each for each in INTERCEPTIONS if each.id == "kserve.uvicorn-serve")
    with PatchSet([patch]):
        serving = asyncio.create_task(server.serve())
        await asyncio.sleep(0)
    while not endpoint.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for path in (b"/first", b"/second"):
        writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
    heads = [await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20) for _ in range(2)]
    writer.close()
    await endpoint.close()
    await endpoint.finish()
    await serving
    return heads


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_request_whose_task_has_not_begun_at_the_deadline_is_answered_too(http):
    first, second = asyncio.run(answers_of(http))
    assert first.startswith(b"HTTP/1.1 200")
    assert second.startswith(b"HTTP/1.1 503")
    assert second.lower().count(b"connection: close") == 1


async def streamed(content_type):
    """What a client reads of a stream that is cut off at the deadline."""
    drain = Drain(may_kill=False)

    async def app(scope, receive, send):
        headers = [(b"content-type", content_type)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        drain.ending = drain.refusing = True
        await endpoint.close()
        endpoint.refuse()
        await asyncio.Event().wait()

    config = uvicorn.Config(app, port=0, lifespan="off", log_level="critical")
    server = uvicorn.Server(config)
    endpoint = RestEndpoint(server, drain)
    (patch,) = (each for each in INTERCEPTIONS if each.id == "kserve.uvicorn-serve")
    with PatchSet([patch]):
        serving = asyncio.create_task(server.serve())
        await asyncio.sleep(0)
    while not endpoint.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0)
    port = server.servers[0].sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    text = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    await endpoint.close()
    await endpoint.finish()
    await serving
    return text


def test_a_stream_of_events_that_is_cut_off_ends_with_an_error():
    text = asyncio.run(streamed(b"text/event-stream; charset=utf-8"))
    assert b"event: error\ndata: {" in text
    assert b'"finish_reason": "error"' in text
    assert text.endswith(b"0\r\n\r\n"), "the stream ends whole"


def test_another_answer_that_is_cut_off_does_not_look_whole():
    text = asyncio.run(streamed(b"application/octet-stream"))
    assert b"error" not in text
    assert not text.endswith(b"0\r\n\r\n")
