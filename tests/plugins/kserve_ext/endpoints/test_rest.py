"""Requests past the deadline of a drain, in a uvicorn of this process."""

import asyncio
import contextlib
import os
import socket
import subprocess
import sys

import pytest
import uvicorn
from tests.support.servers.harness import KSERVE, Server, Version

from kserve_ext.endpoints import rest
from kserve_ext.endpoints.rest import RestEndpoint
from kserve_ext.plugin import INTERCEPTIONS
from kserve_ext.settings import KServeSettings
from kserve_ext.shutdown.counts import IN_FLIGHT, LOST, REFUSED
from kserve_ext.shutdown.drain import Drain
from kserve_ext.shutdown.driver import _close
from mlops_ext.patching import PatchSet

pytestmark = pytest.mark.timeout(60)


@contextlib.asynccontextmanager
async def serving(drain, app, http="auto", **options):
    """A uvicorn of this process in the care of *drain*: its endpoint and a connection to it."""
    config = uvicorn.Config(app, port=0, http=http, lifespan="off", log_level="critical", **options)
    server = uvicorn.Server(config)
    endpoint = RestEndpoint(server, drain)
    (patch,) = (each for each in INTERCEPTIONS if each.id == "kserve.uvicorn-serve")
    with PatchSet([patch]):
        task = asyncio.create_task(server.serve())
        await asyncio.sleep(0)
    while not endpoint.started:  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(endpoint))
    yield endpoint, reader, writer
    writer.close()
    await endpoint.close()
    await endpoint.finish()
    await task


def port_of(endpoint):
    return endpoint.server.servers[0].sockets[0].getsockname()[1]


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

    async with serving(drain, app, http) as (endpoint, reader, writer):
        for path in (b"/first", b"/second"):
            writer.write(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path)
        return [await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20) for _ in range(2)]


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

    async with serving(drain, app) as (endpoint, reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return await asyncio.wait_for(reader.read(), 20), drain.counts


def test_a_stream_of_events_that_is_cut_off_ends_with_an_error():
    text, counts = asyncio.run(streamed(b"text/event-stream; charset=utf-8"))
    assert b"event: error\ndata: {" in text
    assert b'"finish_reason": "error"' in text
    assert text.endswith(b"0\r\n\r\n"), "the stream ends whole"
    assert (counts.total(REFUSED), counts.total(LOST), counts.total(IN_FLIGHT)) == (1, 0, 0)


def test_another_answer_that_is_cut_off_does_not_look_whole():
    text, counts = asyncio.run(streamed(b"application/octet-stream"))
    assert b"error" not in text
    assert not text.endswith(b"0\r\n\r\n")
    assert (counts.total(REFUSED), counts.total(LOST), counts.total(IN_FLIGHT)) == (0, 1, 0)


REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_what_the_kernel_holds_is_waited_for_before_accepting_ends(http):
    """Connections nobody has accepted, and requests nobody has read, while the loop is busy."""
    bodies = []

    async def app(scope, receive, send):
        bodies.append((await receive())["body"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    async def scenario():
        drain = Drain(may_kill=False)
        async with serving(drain, app, http) as (endpoint, reader, _):
            drain.endpoints.append(endpoint)
            while not endpoint.server.server_state.connections:  # noqa: ASYNC110  # no event for it
                await asyncio.sleep(0)
            assert endpoint.waiting() == 0, "an open connection without a request waits for nothing"
            clients = [socket.create_connection(("127.0.0.1", port_of(endpoint))) for _ in range(2)]
            assert endpoint.waiting() == 1, "the listening socket"
            clients[0].sendall(REQUEST + b"first")
            await _close(drain)
            assert endpoint.waiting() == 0
            await asyncio.to_thread(clients[0].settimeout, 20)
            assert (await asyncio.to_thread(clients[0].recv, 99)).startswith(b"HTTP/1.1 204")
            assert await asyncio.to_thread(clients[1].recv, 99) == b"", "closed without an answer"
            assert await asyncio.wait_for(reader.read(), 20) == b""
            for client in clients:
                client.close()

    asyncio.run(scenario())
    assert bodies == [b"first"]


def test_an_upload_that_the_application_does_not_read_holds_nobody_up():
    async def scenario():
        unread, answered = asyncio.Event(), asyncio.Event()

        async def app(scope, receive, send):
            unread.set()
            await answered.wait()

        drain = Drain(may_kill=False)
        async with serving(drain, app) as (endpoint, _, writer):
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9999999\r\n\r\n")
            await unread.wait()
            writer.write(b"x" * 9_000_000)
            for _ in range(100):
                await asyncio.sleep(0.005)
            assert endpoint.waiting() == 0
            answered.set()

    asyncio.run(scenario())


@pytest.mark.skipif(Version("0.18") <= KSERVE, reason="KServe 0.18 keeps connections for 65 s")
@pytest.mark.timeout(400)
@pytest.mark.parametrize("way", ["bare", "subclass"])
def test_an_idle_connection_outlives_the_pools_of_gateways(tmp_path, way):
    """Bare KServe before 0.18 closes it after uvicorn's 5 s, and resets who comes back just then."""

    async def scenario():
        with Server(tmp_path, way=way) as server:
            await server.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
            request = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"
            writer.write(request)
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(7)
            if way == "bare":
                assert await reader.read(1) == b""
                return
            writer.write(request)
            assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            writer.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("setting", "kept_s"), [(65.0, 65), (0.0, 5), (30.0, 30)])
def test_uvicorn_s_own_keep_alive_is_replaced_and_the_user_s_is_not(monkeypatch, setting, kept_s):
    monkeypatch.setattr(rest, "installed_version", lambda _: "0.17.0")

    async def app(scope, receive, send): ...

    async def scenario(**options):
        drain = Drain(may_kill=False, settings=KServeSettings(keep_alive_s=setting))
        async with serving(drain, app, **options) as (endpoint, *_):
            return endpoint.server.config.timeout_keep_alive

    assert asyncio.run(scenario()) == kept_s
    assert asyncio.run(scenario(timeout_keep_alive=9)) == 9


@pytest.mark.parametrize(
    ("prefix", "path"),
    [("", "/v1/models/m"), ("llm", "/llm/v1/models/m"), ("/a/b", "/a/b/v1/models/m/")],
)
def test_readiness_is_also_asked_where_kserve_is_told_to_put_openai_s_routes(prefix, path):
    code = f"""
from kserve_ext.endpoints.asgi import READINESS
print([READINESS.fullmatch(each) is not None for each in ({path!r}, "/v1/models/m", "/c/v1/models/m")])
"""
    environment = {**os.environ, "KSERVE_OPENAI_ROUTE_PREFIX": prefix}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[True, True, False]"
