"""The user's own subclass of a model server stays in force, and one object serves again."""

import asyncio
import subprocess
import sys
import textwrap

import pytest
from tests.support.servers.harness import KSERVE, OLD, SCRIPT, Server, Version, free_ports, get

from kserve_ext import run

pytestmark = pytest.mark.timeout(300)

HAS_SERVE = Version("0.15") <= KSERVE

SUBCLASS = """
import os, signal, sys
from pathlib import Path

sys.path.insert(0, {folder!r})
sys.argv[0] = "server.py"
import model_server as script

class Own(script.Told):
    def stop(self, sig=None):
        script.tell("own stop", number=sig)
        return super().stop(sig)

    def register_signal_handler(self):
        super().register_signal_handler()
        signal.signal(signal.SIGUSR1, lambda *_: script.tell("reload"))

    async def _serve(self):
        script.tell("own serve")
        await super()._serve()

script.Told = Own
if __name__ == "__main__":
    script.main()
"""


@pytest.mark.parametrize("way", ["subclass", pytest.param("run", marks=pytest.mark.slow)])
def test_what_a_subclass_overrides_is_called(tmp_path, way):
    script = tmp_path / "own_server.py"
    script.write_text(SUBCLASS.format(folder=str(SCRIPT.parent)))

    async def scenario():
        with Server(tmp_path, way=way, script=script, lame_duck_s=0.5) as server:
            await server.up()
            if not OLD:
                server.process.send_signal(10)
                await asyncio.to_thread(server.wait_for, "reload")
            call = asyncio.create_task(server.client(instance=1.0).ask("v1-new"))
            await server.begun()
            server.signal()
            assert await call == 1
            assert await server.ended() == 0
            (stop,) = server.events("own stop")
            assert stop["number"] == 15
            assert stop["at"] < server.events("model stopped")[0]["at"]
            assert len(server.events("own serve")) == (0 if OLD else 1)

    asyncio.run(scenario())


def run_script(folder, code, timeout=120):
    (folder / "script.py").write_text(textwrap.dedent(code))
    return subprocess.run(
        [sys.executable, folder / "script.py"],
        cwd=folder, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


DECORATED = """
import functools

def traced(function):
    async def inner(*arguments):
        return await function(*arguments)
    return inner

class Held:
    def __init__(self, function):
        self.function = function
    def __get__(self, one, cls=None):
        return functools.partial(self.function, one)

class Nested(ModelServer):
    async def _serve(self):
        async def inner():
            await super(Nested, self)._serve()
        await inner()

class Traced(ModelServer):
    @traced
    async def _serve(self):
        await super()._serve()

class HeldOne(ModelServer):
    @Held
    async def _serve(self):
        await super()._serve()

class ByName(ModelServer):
    async def _serve(self):
        await getattr(super(), "_serve")()

class Without(ModelServer):
    async def _serve(self):
        await asyncio.gather(*self.servers)
"""


@pytest.mark.skipif(not HAS_SERVE, reason="since 0.15")
def test_a_serve_is_without_ours_only_if_it_surely_does_not_get_there():
    from kserve import ModelServer

    names = {"ModelServer": ModelServer, "asyncio": asyncio}
    exec(DECORATED, names)  # written above
    without = {name for name, each in names.items() if isinstance(each, type) and name != "Held"
               and run._goes_without(each)}  # fmt: skip
    assert without == {"Without"}


@pytest.mark.integration
def test_a_stop_that_a_decorator_has_named_as_kserve_s_own_is_called(tmp_path):
    body = """
    def told(function):
        import functools
        @functools.wraps(function)
        def stop(self, sig=None):
            script.tell("own stop")
            return function(self, sig)
        return stop
    stop = told(script.Told.stop)
"""
    answer, status, stopped, _ = asyncio.run(ended(tmp_path, "subclass", body))
    assert (answer, status, len(stopped)) == (1, 0, 2)
    assert any("own stop" in path.read_text() for path in tmp_path.glob("events-*"))


@pytest.mark.integration
def test_one_server_starts_again_after_its_end_and_never_while_it_runs(tmp_path):
    http_port, grpc_port = free_ports()
    done = run_script(
        tmp_path,
        f"""
        import asyncio
        from kserve import Model
        from kserve_ext import GracefulModelServer
        from urllib.request import urlopen

        async def ready():
            url = "http://127.0.0.1:{http_port}/v2/health/ready"
            return (await asyncio.to_thread(urlopen, url)).status

        def model():
            made = Model("m")
            made.load()
            return made

        async def cell():
            server = GracefulModelServer(http_port={http_port}, grpc_port={grpc_port}, lame_duck_s=0)
            for _ in range(3):
                server.start([model()])
                print(">", await ready())
                try:
                    server.start([model()])
                except RuntimeError as error:
                    print(">", "runs already" in str(error))
                server.shutdown()

        asyncio.run(cell())
        """,
    )
    said = [line[2:] for line in done.stdout.splitlines() if line.startswith("> ")]
    assert said == ["200", "True"] * 3, done.stderr[-2000:]


@pytest.mark.integration
def test_a_server_starts_again_on_the_main_thread(tmp_path):
    """Where KServe asks for an event loop, and the first start has closed it."""
    http_port, grpc_port = free_ports()
    done = run_script(
        tmp_path,
        f"""
        import os, signal, threading, time
        from urllib.request import urlopen
        from kserve import Model
        from kserve_ext import GracefulModelServer

        def end():
            url = "http://127.0.0.1:{http_port}/v2/health/ready"
            while True:
                try:
                    print(">", urlopen(url).status)
                    break
                except OSError:
                    time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGTERM)

        server = GracefulModelServer(http_port={http_port}, grpc_port={grpc_port}, lame_duck_s=0)
        for _ in range(2):
            model = Model("m")
            model.load()
            thread = threading.Thread(target=end)
            thread.start()
            server.start([model])
            thread.join()
            print(">", "returned")
        """,
    )
    said = [line[2:] for line in done.stdout.splitlines() if line.startswith("> ")]
    assert said == ["200", "returned"] * 2, done.stderr[-2000:]


EXITS = """
import sys
sys.path.insert(0, {folder!r})
sys.argv[0] = "server.py"
import model_server as script

class Own(script.Told):
    {body}

script.Told = Own
script.main()
"""


async def ended(folder, way, body):
    """What a request in flight got, and how the server of such a class ended."""
    script = folder / "own_server.py"
    script.write_text(EXITS.format(folder=str(SCRIPT.parent), body=body))
    with Server(folder, way=way, script=script, lame_duck_s=0.2) as server:
        await server.up()
        call = asyncio.create_task(server.client(instance=2.0).ask("v1-new"))
        await server.begun()
        server.signal()
        answer, status = await call, await server.ended()
        return answer, status, server.events("model stopped"), server.log


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["def", "async def"])
def test_a_stop_that_exits_gives_the_status_and_loses_nothing(tmp_path, kind):
    """As on bare KServe, where it is called when uvicorn has drained."""
    body = f"{kind} stop(self, sig=None): sys.exit(7)"
    answer, status, stopped, _ = asyncio.run(ended(tmp_path, "subclass", body))
    assert (answer, status, [event["in_flight"] for event in stopped]) == (1, 7, [0, 0])


@pytest.mark.integration
def test_an_asynchronous_stop_runs_whole_and_what_it_raises_is_told(tmp_path):
    body = """
    async def stop(self, sig=None):
        await script.asyncio.sleep(4)
        script.tell("own stop ends")
        raise ValueError("x")
"""
    script = tmp_path / "own_server.py"
    script.write_text(EXITS.format(folder=str(SCRIPT.parent), body=body.strip()))

    async def scenario():
        with Server(tmp_path, script=script, lame_duck_s=0) as server:
            await server.up()
            server.signal()
            status = await server.ended()
            return status, server.events("own stop ends"), server.log

    status, ends, log = asyncio.run(scenario())
    assert (status, len(ends)) == (0, 1)
    assert "Own.stop raised: ValueError in stop" in log


@pytest.mark.integration
@pytest.mark.skipif(not HAS_SERVE, reason="KServe before 0.15 has no _serve")
@pytest.mark.parametrize("way", ["subclass", "run"])
def test_a_serve_that_goes_without_kserve_s_is_left_to_kserve_and_told(tmp_path, way):
    body = "async def _serve(self): await script.asyncio.gather(*self.servers)"
    answer, status, stopped, log = asyncio.run(ended(tmp_path, way, body))
    assert (answer, status, len(stopped)) == (1, 0, 2), log[-2000:]
    assert "_serve does not call super()._serve(); the server starts as KServe's own" in log


def test_which_classes_go_without():
    class Base:
        async def _serve(self): ...

    class Calls(Base):
        async def _serve(self):
            await super()._serve()

    class CallsElsewhere(Base):
        async def _serve(self):
            await self.around()

        async def around(self):
            await Base._serve(self)

    class Without(Base):
        async def _serve(self): ...

    class Below(Without):
        async def _serve(self):
            await super()._serve()

    classes = (Base, Calls, CallsElsewhere, Without, Below)
    assert [run._goes_without(each) for each in classes] == [False, False, False, True, True]


@pytest.mark.integration
def test_a_program_that_forgets_its_server_ends_and_drains_it(tmp_path):
    http_port, _ = free_ports()
    done = run_script(
        tmp_path,
        f"""
        import asyncio
        from kserve import Model
        from kserve_ext import GracefulModelServer

        class Told(Model):
            def stop(self):
                print("> stopped", flush=True)

        async def cell():
            model = Told("m")
            model.load()
            GracefulModelServer(http_port={http_port}, enable_grpc=False).start([model])

        asyncio.run(cell())
        print("> main is done", flush=True)
        """,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("> ")]
    assert (said, done.returncode) == (["> main is done", "> stopped"], 0), done.stderr[-2000:]


@pytest.mark.integration
def test_more_descriptors_than_select_knows(tmp_path):
    port = free_ports()[0]
    code = f"""
    import os, resource, socket, time
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    import signal, threading
    from kserve import Model
    from kserve_ext import GracefulModelServer
    model = Model("m")
    model.load()
    def end():
        while socket.socket().connect_ex(("127.0.0.1", {port})):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=end).start()
    GracefulModelServer(http_port={port}, enable_grpc=False).start([model])
    print("> drained")
    """
    done = run_script(tmp_path, code)
    assert "> drained" in done.stdout, done.stderr[-2000:]


async def health(port):
    import grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        answers = [
            await check(request) for request in (b"", b"\n\x1einference.GRPCInferenceService")
        ]
        with pytest.raises(grpc.aio.AioRpcError, match="unknown service"):
            await check(b"\n\x01x")
        first = await channel.unary_stream("/grpc.health.v1.Health/Watch")(b"").read()
    return {*answers, first}


@pytest.mark.integration
def test_grpc_s_own_health_service_says_what_readiness_says(tmp_path):
    async def scenario():
        with Server(tmp_path, lame_duck_s=600) as server:
            await server.up()
            assert await health(server.grpc_port) == {b"\x08\x01"}
            server.signal()
            await server.noticed()
            assert await health(server.grpc_port) == {b"\x08\x02"}
            for path in ("/openai/v1/models/m", "/v2/health/ready/", "/v2/models/m/ready"):
                assert (await get(server.http_port, path))[0] == 503

    asyncio.run(scenario())
