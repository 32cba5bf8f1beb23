"""A model that is unloaded through the repository's API answers first what it was asked."""

import asyncio
import contextlib
from collections import Counter

import httpx
import pytest
from kserve.protocol.dataplane import DataPlane
from tests.support.servers.harness import KSERVE, Server, Version
from tests.support.servers.load import Load, get

from kserve_ext.endpoints.asgi import gated
from kserve_ext.shutdown.drain import Drain

pytestmark = pytest.mark.timeout(300)

ASKED = 10


async def repository(server, action, model="m"):
    url = f"http://127.0.0.1:{server.http_port}/v2/repository/models/{model}/{action}"
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        return (await client.post(url)).status_code


async def grpc_unload(server, model="m"):
    """Unload over gRPC. KServe's servicer then fails over its own answer (INTERNAL)."""
    import grpc
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as service

    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = service.GRPCInferenceServiceStub(channel)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await stub.RepositoryModelUnload(
                messages.RepositoryModelUnloadRequest(model_name=model)
            )


async def ask_then_unload(server, unload):
    """What requests in flight got, the unload's own answer, and what a late request got."""
    client = server.client(instance=4.0)
    kinds = ("v1-new", "grpc-new") * (ASKED // 2)
    asked = [asyncio.create_task(client.ask(kind)) for kind in kinds]
    await server.begun(ASKED)
    unloading = asyncio.create_task(unload(server))
    while (await get(server.http_port, "/v2/models/m"))[0] == 200:  # noqa: ASYNC110  # no event
        await asyncio.sleep(0.02)
    late = await asyncio.gather(server.client().ask("v1-new"), return_exceptions=True)
    answers = await asyncio.gather(*asked)
    await client.close()
    return answers, await unloading, late[0]


@pytest.mark.parametrize("way", [pytest.param("bare", marks=pytest.mark.integration), "subclass"])
def test_requests_in_flight_are_answered_before_a_model_is_unloaded(tmp_path, way):
    async def scenario():
        with Server(tmp_path, way=way, lame_duck_s=0.1) as server:
            await server.up()
            unload = lambda server: repository(server, "unload")  # noqa: E731
            answers, unloaded, late = await ask_then_unload(server, unload)
            by_a_stopped_model = answers.count(0)
            assert by_a_stopped_model == (ASKED if way == "bare" else 0)
            assert (unloaded, "404" in str(late)) == (200, True)
            assert server.events("model stopped")[0]["in_flight"] == by_a_stopped_model
            assert await repository(server, "unload") == 404
            assert await server.client(model="c").ask("v2-new") == 1, "the other model serves"
            server.signal()
            await server.ended()
            stopped = [event["model"] for event in server.events("model stopped")]
            assert sorted(stopped) == ["c", "m"]

    asyncio.run(scenario())


@pytest.mark.integration
def test_over_grpc_too_and_behind_a_middleware_that_makes_tasks(tmp_path):
    """Starlette's BaseHTTPMiddleware runs the application in a task of its own."""
    code = f"""
import runpy, sys
from kserve import model_server
from starlette.middleware.base import BaseHTTPMiddleware
if hasattr(model_server, "app"):
    async def through(request, call_next):
        return await call_next(request)
    model_server.app.add_middleware(BaseHTTPMiddleware, dispatch=through)
sys.argv[0] = {str(Server.script)!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    script = tmp_path / "with_middleware.py"
    script.write_text(code)

    async def scenario():
        with Server(tmp_path, way="run", script=script, lame_duck_s=0.1) as server:
            await server.up()
            answers, _, _ = await ask_then_unload(server, grpc_unload)
            assert answers.count(1) == ASKED
            assert server.events("model stopped")[0]["in_flight"] == 0
            assert await repository(server, "unload", "c") == 200
            assert "in flight after" not in server.log, "the unload waited for itself"
            server.signal()
            assert await server.ended() == 0

    asyncio.run(scenario())


@pytest.mark.integration
@pytest.mark.parametrize("way", [pytest.param("bare", marks=pytest.mark.integration), "run"])
def test_four_models_unloaded_under_load(tmp_path, way):
    """None answers once it is stopped; what was sent after the unload is told so, and nothing else
    is lost."""
    names = ("m", "m0", "m1", "m2")

    async def scenario():
        flags = ("--more_models", "3")
        with Server(tmp_path, way=way, lame_duck_s=0.1, flags=flags) as server:
            await server.up()
            done = asyncio.Event()
            kinds = ("v1-kept", "v2-new", "grpc-kept")
            clients = [server.client(model=name, instance=1.0) for name in names]
            loads = [Load(client, 10, kinds) for client in clients]
            running = [asyncio.create_task(load.run(done.is_set)) for load in loads]
            for name, load in zip(names, loads, strict=True):
                begun = load.sent
                while load.sent < begun + 15:  # noqa: ASYNC110  # the load has no event for it
                    await asyncio.sleep(0.05)
                assert await repository(server, "unload", name) == 200
            done.set()
            await asyncio.gather(*running)
            for client in clients:
                await client.close()
            return sum((load.count() for load in loads), Counter()), [
                answer.detail for load in loads for answer in load.answers if answer.detail
            ]

    count, details = asyncio.run(scenario())
    assert count["ok"] >= 4 * 15, count
    assert (count["stopped"] > 0) == (way == "bare"), count
    told = ("404", "NOT_FOUND", "ModelNotFound")  # the last is what KServe 0.13 says over gRPC
    assert all(any(word in detail for word in told) for detail in details), details


@pytest.mark.integration
@pytest.mark.parametrize("way", [pytest.param("bare", marks=pytest.mark.integration), "run"])
def test_a_model_that_is_loaded_anew_answers_first(tmp_path, way):
    """Its load() replaces what requests in flight still use; those that come meanwhile wait."""

    async def scenario():
        with Server(tmp_path, way=way, lame_duck_s=0.1) as server:
            await server.up()
            client, kinds = server.client(instance=4.0), ("v1-new", "v2-new", "grpc-new") * 3
            asked = [asyncio.create_task(client.ask(kind)) for kind in kinds]
            await server.begun(len(asked))
            loading = [asyncio.create_task(repository(server, "load")) for _ in range(2)]
            await asyncio.sleep(0.3)
            late = [asyncio.create_task(client.ask(kind)) for kind in kinds]
            other = await server.client(model="c").ask("v2-new")
            in_time = not any(task.done() for task in asked)
            answers = await asyncio.gather(*asked)
            loaded, late = await asyncio.gather(*loading), await asyncio.gather(*late)
            await client.close()
            loads = [e["in_flight"] for e in server.events("loading") if e["model"] == "m"]
            return answers, loaded, late, (other, in_time), loads

    answers, loaded, late, other, loads = asyncio.run(scenario())
    assert loaded == [200, 200]
    assert other == (1, True), "other models serve meanwhile"
    if way == "bare":
        assert answers == [0] * 9
        return
    assert answers == late == [1] * 9
    assert loads == [0, 0, 0], "nothing was in flight when it loaded"


@pytest.mark.integration
def test_without_the_setting_a_model_is_loaded_anew_at_once(tmp_path):
    async def scenario():
        environment = {"MLOPS_EXT_KSERVE_UNLOAD_S": "0"}
        with Server(tmp_path, environment=environment) as server:
            await server.up()
            asked = asyncio.create_task(server.client(instance=4.0).ask("v1-new"))
            await server.begun()
            assert await repository(server, "load") == 200
            assert await asked == 0

    asyncio.run(scenario())


@pytest.mark.integration
@pytest.mark.parametrize(
    ("method", "path", "waits"),
    [
        ("POST", "/v1/models/m:predict", True),
        ("POST", "/v1/models/m:explain", True),
        ("POST", "/v2/models/m/infer", True),
        ("POST", "/v2/models/m/versions/1/infer", True),
        ("POST", "/openai/v1/completions", True),
        ("POST", "/v1/chat/completions", True),  # KSERVE_OPENAI_ROUTE_PREFIX is empty
        ("POST", "/v1/timeseries/forecast", True),
        ("POST", "/models/mine/v1/models/m:predict", True),
        ("POST", "/v1/models/m2:predict", False),
        ("GET", "/v2/models/m/ready", False),
        ("POST", "/v2/repository/models/m/unload", False),
    ],
)
def test_which_requests_wait_for_a_model_that_is_loaded_anew(method, path, waits):
    async def scenario():
        drain, reached = Drain(may_kill=False), asyncio.Event()

        async def app(scope, receive, send):
            reached.set()

        drain.reloads["m"] = loaded = asyncio.Event()
        scope = {"type": "http", "method": method, "path": path}
        task = asyncio.create_task(gated(app, drain)(scope, None, None))
        for _ in range(5):
            await asyncio.sleep(0)
        assert reached.is_set() != waits
        loaded.set()
        await task
        assert reached.is_set()

    asyncio.run(scenario())


@pytest.mark.integration
@pytest.mark.skipif(Version("0.14") > KSERVE, reason="before 0.14 applications are not shared")
def test_the_copy_that_openai_s_routes_look_into_forgets_the_model_too(monkeypatch):
    """KServe makes it where a model speaks OpenAI's protocol, and its own unload forgets it."""
    from kserve import Model, ModelRepository, model_server

    from kserve_ext.shutdown import models

    class Endpoints:
        def __init__(self, repository):
            self.dataplane = DataPlane(repository)

        async def create_completion(self):
            raise NotImplementedError

    main, copy = ModelRepository(), ModelRepository()
    for repository in (main, copy):
        repository.update(Model("m"), "m")
    routes = list(model_server.app.router.routes)
    monkeypatch.setattr(model_server.app.router, "routes", routes)
    model_server.app.add_api_route("/openai/v1/completions", Endpoints(copy).create_completion)

    async def scenario():
        models.care_for(main, Drain(may_kill=False))

        async def upstream():
            assert not copy.get_models()
            main.unload("m")

        await models.unload(main, "m", upstream)

    asyncio.run(scenario())
    assert not main.get_models()


@pytest.mark.integration
@pytest.mark.parametrize("seconds", ["0", "0.5"])
def test_the_wait_has_a_limit_that_is_a_setting(tmp_path, seconds):
    environment = {"MLOPS_EXT_KSERVE_UNLOAD_S": seconds}

    async def scenario():
        with Server(tmp_path, environment=environment) as server:
            await server.up()
            asked = asyncio.create_task(server.client(instance=8.0).ask("v1-new"))
            await server.begun()
            assert await repository(server, "unload") == 200
            assert not asked.done()
            assert [event["in_flight"] for event in server.events("model stopped")] == [1]
            assert ("1 requests in flight after 0.5 s" in server.log) == (seconds != "0")
            asked.cancel()

    asyncio.run(scenario())
