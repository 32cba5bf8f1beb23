"""Off the main thread, in a notebook, in front of a predictor."""

import asyncio
import inspect
import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from tests.support.servers import harness
from tests.support.servers.harness import KSERVE, Server, Version, free_ports

pytestmark = pytest.mark.timeout(400)

TRANSFORMER = Path(harness.__file__).with_name("transformer.py")


def run_script(folder, code, timeout=120):
    path = folder / "script.py"
    path.write_text(textwrap.dedent(code))
    return subprocess.run(
        [sys.executable, path],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def said(done):
    """What the script printed; uvicorn's access log goes there too."""
    return [line[2:] for line in done.stdout.splitlines() if line.startswith("> ")]


@pytest.mark.integration
def test_bare_server_does_not_start_in_a_thread(tmp_path):
    http_port, grpc_port = free_ports()
    done = run_script(
        tmp_path,
        f"""
        import threading
        from kserve import Model, ModelServer
        model = Model("m"); model.load()
        server = ModelServer(http_port={http_port}, grpc_port={grpc_port})
        threading.Thread(target=server.start, args=([model],)).start()
    """,
    )
    assert "RuntimeError" in done.stderr or "ValueError" in done.stderr


@pytest.mark.integration
def test_a_server_in_a_thread_drains_on_shutdown(tmp_path):
    async def scenario():
        with Server(tmp_path, flags=("--in_thread",), lame_duck_s=0.3) as server:
            await server.up()
            asked = [
                asyncio.create_task(server.client(instance=1.0).ask(kind))
                for kind in ("v1-new", "grpc-new")
            ]
            await server.begun(2)
            server.signalled_at = 0.0
            server.process.stdin.write(b"go\n")
            server.process.stdin.flush()
            assert await asyncio.gather(*asked) == [1, 1]
            assert await server.ended() == 0
            assert [event["in_flight"] for event in server.events("model stopped")] == [0, 0]
            assert server.log.count("signals are left alone") == 1

    asyncio.run(scenario())


@pytest.mark.slow
def test_signals_are_left_alone_in_a_thread(tmp_path):
    async def scenario():
        with Server(tmp_path, flags=("--in_thread",)) as server:
            await server.up()
            server.signal(signal.SIGTERM)
            assert await server.ended() == -signal.SIGTERM

    asyncio.run(scenario())


@pytest.mark.integration
def test_start_works_in_a_notebook_and_twice(tmp_path):
    """A cell runs inside a loop: ``start`` returns, other cells go on, ``shutdown`` drains."""
    http_port, grpc_port = free_ports()
    done = run_script(
        tmp_path,
        f"""
        import asyncio, signal
        before = signal.getsignal(signal.SIGTERM)
        from kserve import Model
        from kserve_ext import GracefulModelServer
        from urllib.request import urlopen

        async def ready():
            url = "http://127.0.0.1:{http_port}/v2/health/ready"
            return (await asyncio.to_thread(urlopen, url)).status

        class Twice(Model):
            async def predict(self, payload, headers=None):
                return payload

        async def cells():
            for offset in (0, 2):
                model = Twice("m")
                model.load()
                server = GracefulModelServer(http_port={http_port}, grpc_port={grpc_port} + offset, lame_duck_s=0.1)
                server.start([model])
                print(">", await ready())
                print(">", server.shutdown())

        asyncio.run(cells())
        assert signal.getsignal(signal.SIGTERM) == before or callable(signal.getsignal(signal.SIGTERM))
    """,
    )
    assert said(done) == ["200", "True"] * 2, done.stderr[-2000:]
    assert done.returncode == 0


CELL = """
from kserve import Model
from kserve_ext import GracefulModelServer

class Slow(Model):
    async def predict(self, payload, headers=None):
        import asyncio
        await asyncio.sleep(payload["instances"][0])
        return payload

model = Slow("m")
model.load()
server = GracefulModelServer(http_port={http_port}, enable_grpc=False)
server.start([model])
print("serves")
"""


@pytest.mark.integration
def test_a_jupyter_kernel_that_is_shut_down_drains_its_server_and_ends(tmp_path):
    """Jupyter asks a kernel to end, and kills it after 5 s."""
    from jupyter_client.manager import KernelManager

    http_port, _ = free_ports()
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=tmp_path)
    client = manager.client()
    try:
        client.start_channels()
        client.wait_for_ready(timeout=120)
        said = []
        reply = client.execute_interactive(
            CELL.format(http_port=http_port),
            timeout=120,
            output_hook=lambda message: said.append(message["content"].get("text", "")),
        )
        assert reply["content"]["status"] == "ok", said
        assert "serves" in "".join(said)
        call = threading.Thread(target=lambda: said.append(ask(http_port, 1.5)))
        call.start()
        while b"kserve_ext_in_flight 1" not in metrics(http_port):
            time.sleep(0.05)
        provider = manager.provisioner
        client.shutdown()
        manager.finish_shutdown(waittime=60)
        call.join()
        assert said[-1] == b'{"instances":[1.5]}'
        assert provider.process is None or provider.process.poll() == 0
    finally:
        client.stop_channels()
        if manager.is_alive():
            manager.shutdown_kernel(now=True)


def ask(port, seconds):
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/models/m:predict",
        data=json.dumps({"instances": [seconds]}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read()


def metrics(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        return answer.read()


@pytest.mark.slow
def test_earlier_handlers_come_back(tmp_path):
    http_port, grpc_port = free_ports()
    done = run_script(
        tmp_path,
        f"""
        import signal, socket, threading, time
        def mine(number, frame): pass
        signal.signal(signal.SIGTERM, mine)
        from kserve import Model
        from kserve_ext import GracefulModelServer
        assert signal.getsignal(signal.SIGTERM) is mine
        model = Model("m"); model.load()
        server = GracefulModelServer(http_port={http_port}, grpc_port={grpc_port}, lame_duck_s=0.1)
        def end():
            while socket.socket().connect_ex(("127.0.0.1", {http_port})):
                time.sleep(0.05)
            server.shutdown()
        threading.Thread(target=end).start()
        server.start([model])
        print(">", signal.getsignal(signal.SIGTERM) is mine)
        print(">", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
        print(">", signal.getsignal(signal.SIGQUIT) == signal.SIG_DFL)
        print(">", signal.set_wakeup_fd(-1))
    """,
    )
    assert said(done) == ["True", "True", "True", "-1"], done.stderr[-2000:]


async def transformed(folder, way, kinds):
    """Answers of a transformer that gets SIGTERM with requests in flight."""
    with Server(folder, way="subclass", flags=("--sleep", "1.5")) as predictor:
        await predictor.up()
        host = f"127.0.0.1:{predictor.http_port}"
        flags = ("--predictor_host", host, "--predictor_protocol", "v2")
        with Server(folder, way=way, script=TRANSFORMER, flags=flags, lame_duck_s=0.2) as server:
            await server.up(("v2-new", *kinds))
            asked = [asyncio.create_task(server.client().ask(kind)) for kind in kinds * 3]
            await predictor.begun(len(asked))
            server.signal()
            answers = await asyncio.gather(*asked, return_exceptions=True)
            return answers, await server.ended()


@pytest.mark.slow
@pytest.mark.skipif(Version("0.15") > KSERVE, reason="KServe closes clients since 0.15")
def test_bare_transformer_loses_calls_in_flight(tmp_path):
    """Those of gRPC: the HTTP server waits for its own before KServe closes the client."""
    answers, _ = asyncio.run(transformed(tmp_path, "bare", ("grpc-new",)))
    assert any(isinstance(answer, Exception) for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("grpc-new",), ("v2-new", "grpc-new", "v2-kept")])
def test_transformer_finishes_calls_in_flight(tmp_path, kinds):
    answers, status = asyncio.run(transformed(tmp_path, "subclass", kinds))
    assert ([a for a in answers if a != 1], status) == ([], 0)


def test_the_subclass_takes_what_its_parent_takes():
    from kserve import ModelServer

    from kserve_ext import GracefulModelServer

    parent = inspect.signature(ModelServer.__init__).parameters
    ours = inspect.signature(GracefulModelServer.__init__).parameters
    assert {"lame_duck_s", "drain_s"} <= set(ours)
    server = GracefulModelServer(
        **{name: p.default for name, p in parent.items() if name != "self"}
    )
    assert isinstance(server, ModelServer)
