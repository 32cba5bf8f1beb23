"""Signals before, during and after the start; second signals; what each phase does."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from tests.support.servers.harness import (
    HAS_WORKERS,
    KSERVE,
    Server,
    Version,
    children_of,
    get,
    is_running,
    probe,
)

from kserve_ext.shutdown.drain import Drain, Endpoint
from kserve_ext.shutdown.driver import _stop

pytestmark = pytest.mark.timeout(400)

needs_workers = pytest.mark.skipif(not HAS_WORKERS, reason="KServe 0.14 ignores workers")
HAS_RACE = Version("0.15") <= KSERVE


@pytest.mark.skipif(not HAS_RACE, reason="only 0.15 and later stop gRPC while it starts")
def test_bare_server_crashes_on_a_signal_while_it_starts(tmp_path):
    statuses = []
    for delay in (0.02, 0.04):
        with Server(tmp_path, way="bare") as server:
            server.wait_for("start")
            time.sleep(delay)
            server.signal()
            statuses.append(server.wait())
    assert -signal.SIGSEGV in statuses


@pytest.mark.parametrize(
    "delay",
    [0.03, 0.3, *(pytest.param(d, marks=pytest.mark.slow) for d in (0.0, 0.01, 0.08, 0.15))],
)
def test_a_signal_while_it_starts_ends_it_cleanly(tmp_path, delay):
    with Server(tmp_path) as server:
        server.wait_for("start")
        time.sleep(delay)
        server.signal()
        assert server.wait() == 0, server.log[-2000:]
        assert "Traceback" not in server.log


@pytest.mark.slow
def test_a_hundred_signals_while_it_starts(tmp_path):
    late = []
    for number in range(100):
        with Server(tmp_path) as server:
            server.wait_for("start")
            time.sleep(0.004 * number)
            server.signal((signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)[number % 3])
            assert server.wait(20) == 0, server.log[-2000:]
            late.append(server.seconds)
    print(f"100 signals, slowest exit {max(late):.2f} s")


as_pid_1 = pytest.mark.skipif(
    shutil.which("unshare") is None or os.geteuid() != 0, reason="needs root and unshare"
)


@pytest.mark.integration
@as_pid_1
@pytest.mark.needs_namespaces
@pytest.mark.parametrize(
    "way", ["subclass", *(pytest.param(way, marks=pytest.mark.slow) for way in ("bare", "patch"))]
)
def test_pid_1_gets_a_signal_while_a_model_loads(tmp_path, way):
    """The kernel drops signals without a handler for PID 1: the bare server never hears it."""
    prefix = ("unshare", "--pid", "--fork", "--kill-child")
    with Server(tmp_path, way=way, prefix=prefix, flags=("--load_s", "4")) as server:
        server.wait_for("loading")
        (init, *_) = children_of(server.process.pid)
        server.signalled_at = time.monotonic()
        os.kill(init, signal.SIGTERM)
        if way == "bare":
            server.wait_for("start")
            assert is_running(init)
        else:
            assert server.wait() == 128 + signal.SIGTERM, server.log[-2000:]
            assert not server.events("start")


def test_readiness_says_no_at_once_and_liveness_yes(tmp_path):
    async def scenario():
        with Server(tmp_path, lame_duck_s=600) as server:
            await server.up()
            assert await probe(server) == (200, 200, 200, 200)
            assert await grpc_ready(server) == (True, True)
            server.signal()
            await server.noticed()
            assert await probe(server) == (503, 503, 503, 200)
            assert await grpc_ready(server) == (False, False)
            client = server.client()
            assert await client.ask("v1-new") == 1  # accepted and answered as before
            assert await client.ask("grpc-new") == 1
            status, headers, _ = await get(server.http_port, "/v2/models/m")
            assert (status, headers["connection"]) == (200, "close")
            metrics = (await get(server.http_port, "/metrics"))[2].decode()
            assert "kserve_ext_draining 1.0" in metrics
            assert re.search(r"kserve_ext_in_flight 0\.0", metrics), "a scrape is none"
            assert (
                float(re.search(r"^kserve_ext_drain_seconds (\S+)", metrics, re.MULTILINE)[1]) > 0
            )

    asyncio.run(scenario())


async def shown(server, name):
    """What the metric `kserve_ext_NAME` says."""
    metrics = (await get(server.http_port, "/metrics"))[2].decode()
    return float(re.search(rf"^kserve_ext_{name} (\S+)", metrics, re.MULTILINE)[1])


@pytest.mark.integration
def test_a_request_that_was_in_flight_at_the_signal_closes_its_connection(tmp_path):
    async def scenario():
        with Server(tmp_path, lame_duck_s=0.5) as server:
            await server.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
            body = b'{"instances": [3]}'
            request = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            writer.write(request % len(body) + body)
            await server.begun()
            server.signal()
            head, _, content = (await reader.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert head.lower().split(b"\r\n").count(b"connection: close") == 1
            assert content == b'{"predictions":[1]}'
            writer.close()
            assert await server.ended() == 0

    asyncio.run(scenario())


async def grpc_ready(server):
    import grpc
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
    from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as service

    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = service.GRPCInferenceServiceStub(channel)
        first = await stub.ServerReady(messages.ServerReadyRequest())
        second = await stub.ModelReady(messages.ModelReadyRequest(name="m"))
        return first.ready, second.ready


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGQUIT,
        signal.SIGHUP,
        *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGTERM)),
    ],
)
def test_each_signal_drains(tmp_path, number):
    async def scenario():
        with Server(tmp_path, lame_duck_s=0.2) as server:
            await server.up()
            asked = [
                asyncio.create_task(server.client(instance=1.0).ask(kind))
                for kind in ("v1-new", "v2-new", "grpc-new")
            ]
            await server.begun(len(asked))
            server.signal(number)
            assert await asyncio.gather(*asked) == [1, 1, 1]
            assert await server.ended() == 0
            for phase in ("not ready", "stop accepting", "stop: ", "done after"):
                assert server.log.count(phase) == 1, phase

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.skipif(not HAS_RACE, reason="before 0.15 SIGQUIT is handled as SIGTERM")
def test_bare_server_survives_sigquit(tmp_path):
    async def scenario():
        with Server(tmp_path, way="bare") as server:
            await server.up()
            server.signal(signal.SIGQUIT)
            assert await server.ended(timeout=4) is None
            assert (await get(server.http_port, "/v2/health/ready"))[0] == 200

    asyncio.run(scenario())


@pytest.mark.integration
@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=[pytest.mark.integration, needs_workers]),
    ],
)
def test_a_second_signal_ends_it_at_once(tmp_path, workers):
    async def scenario():
        with Server(tmp_path, workers=workers) as server:
            await server.up()
            children = children_of(server.process.pid)
            server.signal()
            await asyncio.sleep(0.5)
            server.process.send_signal(signal.SIGHUP)  # as systemd sends it along
            await asyncio.sleep(0.2)
            assert server.process.poll() is None
            server.signalled_at = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert await server.ended() == 128 + signal.SIGTERM
            await gone(children)

    asyncio.run(scenario())


@pytest.mark.integration
def test_signals_that_are_repeated_in_kubernetes_are_one_and_a_second_ctrl_c_is_not(tmp_path):
    async def scenario():
        environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}
        with Server(tmp_path, lame_duck_s=30, environment=environment) as server:
            await server.up()
            server.signal()
            for _ in range(3):
                await asyncio.sleep(0.4)
                server.process.send_signal(signal.SIGTERM)
            assert await server.client().ask("v1-new") == 1
            server.process.send_signal(signal.SIGINT)
            assert await server.ended() == 128 + signal.SIGINT

    asyncio.run(scenario())


@pytest.mark.integration
def test_models_stop_whole_within_their_time_whoever_has_asked_the_server(tmp_path):
    """Nobody has asked this one; one that was asked differs in nothing."""
    with Server(tmp_path, lame_duck_s=0, flags=("--stop_s", "1.5")) as server:
        end = time.monotonic() + 120
        while "Uvicorn running" not in server.log:
            assert time.monotonic() < end
            time.sleep(0.01)
        server.signal()
        assert server.wait() == 0
        assert [event["model"] for event in server.events("model has stopped")] == ["m", "c"]


def test_the_models_of_the_parent_stop_while_those_of_the_workers_do():
    """One after the other would take longer than a stop may, if a request outlasts the drain."""
    order = []

    class Workers(Endpoint):
        apart, started = True, True

        def in_flight(self):
            return 1

        async def close(self):
            pass

        async def finish(self):
            await stopped.wait()
            order.append("workers have ended")

    class Own(Workers):
        apart = False

        async def finish(self):
            order.append("lifespan has ended")

    async def stop():
        order.append("models have stopped")
        stopped.set()

    async def scenario():
        nonlocal stopped
        stopped = asyncio.Event()
        drain = Drain(may_kill=False)
        drain.endpoints += [Workers(), Own()]
        await _stop(drain, stop)

    stopped = None
    asyncio.run(scenario())
    assert order == ["lifespan has ended", "models have stopped", "workers have ended"]


@pytest.mark.integration
def test_a_model_that_stops_too_slowly_is_cut_off_with_a_status_that_says_so(tmp_path):
    environment = {"MLOPS_EXT_KSERVE_STOP_S": "0.5"}
    flags = ("--stop_s", "20")
    with Server(tmp_path, lame_duck_s=0, drain_s=0, flags=flags, environment=environment) as server:
        asyncio.run(server.up())
        server.signal()
        assert server.wait() == 128 + signal.SIGTERM


@pytest.mark.slow
def test_bare_server_ignores_a_second_signal(tmp_path):
    async def scenario():
        with Server(tmp_path, way="bare") as server:
            await server.up()
            asked = [
                asyncio.create_task(server.client(instance=3.0).ask(k))
                for k in ("v1-new", "grpc-new")
            ]
            await server.begun(len(asked))
            server.signal()
            await asyncio.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            ended = await server.ended(timeout=1.0)
            await asyncio.gather(*asked, return_exceptions=True)
            return ended

    assert asyncio.run(scenario()) is None


@pytest.mark.integration
@pytest.mark.parametrize(
    "workers",
    [
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=[pytest.mark.integration, needs_workers]),
    ],
)
def test_one_ctrl_c_to_the_group_is_one_signal(tmp_path, workers):
    """A Ctrl-C reaches the parent, the workers and a wrapper that passes it on."""

    async def scenario():
        with Server(tmp_path, workers=workers) as server:
            await server.up()
            asked = [
                asyncio.create_task(server.client(instance=1.5).ask(kind))
                for kind in ("v1-new", "v2-new", "v2-new", "grpc-new")
            ]
            await server.begun(len(asked))
            server.signal(signal.SIGINT, group=True)
            server.process.send_signal(signal.SIGINT)
            assert await asyncio.gather(*asked) == [1, 1, 1, 1]
            assert await server.ended() == 0

    asyncio.run(scenario())


def test_requests_past_the_deadline_get_an_answer(tmp_path):
    async def scenario():
        with Server(tmp_path, lame_duck_s=0.1, drain_s=0.5) as server:
            await server.up()
            body = b'{"instances": [30]}'
            reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
            writer.write(
                b"POST /v1/models/m:predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
                % len(body)
                + body
            )
            call = asyncio.create_task(server.client(instance=30.0).ask("grpc-new"))
            await server.begun(2)
            server.signal()
            head, _, content = (await reader.read()).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in head.lower()
            assert head.lower().split(b"\r\n").count(b"connection: close") == 1
            assert content.startswith(b'{"error"')
            with pytest.raises(Exception, match="UNAVAILABLE"):
                await call
            writer.close()
            assert await server.ended() == 0
            assert "refused 2 requests" in server.log
            assert "0 requests drained, 2 refused, 0 lost" in server.log

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_model_that_blocks_the_loop_does_not_keep_the_process(tmp_path):
    async def scenario():
        with Server(tmp_path, lame_duck_s=0.1, drain_s=0.3) as server:
            await server.up()
            client = server.client(model="c", instance=600.0)
            call = asyncio.create_task(client.ask("v1-new"))
            await server.begun()
            server.signal()
            assert await server.ended(timeout=120) == 128 + signal.SIGTERM
            await asyncio.gather(call, return_exceptions=True)

    asyncio.run(scenario())


CUT_OFF = """
import logging, signal, sys
from kserve_ext.shutdown import drain as module

class Stuck(logging.Handler):
    def emit(self, record):
        while True:
            signal.pause()

if sys.argv[1] == "stuck":
    logging.getLogger("kserve.graceful").addHandler(Stuck())
else:
    module.LONGEST_TELL_S = 60
drain = module.Drain()
drain.signal(signal.SIGTERM)
drain.clock = lambda: 1e9
drain.signal(signal.SIGINT)
"""


@pytest.mark.parametrize("log", ["stuck", "written"])
def test_a_server_that_is_cut_off_says_so_if_its_log_can_be_written(log):
    command = [sys.executable, "-c", CUT_OFF, log]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert ("0 requests in flight; status 130" in done.stderr) == (log == "written")


@pytest.mark.integration
@needs_workers
def test_workers_of_a_killed_parent_end(tmp_path):
    async def scenario():
        with Server(tmp_path, workers=2) as server:
            await server.up()
            workers = children_of(server.process.pid)
            assert len(workers) >= 2
            server.process.kill()
            server.process.wait()
            await gone(workers)

    asyncio.run(scenario())


async def gone(pids, timeout=60):
    """Wait until none of *pids* runs."""
    end = time.monotonic() + timeout
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < end, left
        await asyncio.sleep(0.05)


@pytest.mark.integration
@pytest.mark.parametrize(
    "workers",
    [1, pytest.param(2, marks=[pytest.mark.integration, needs_workers])],
)
def test_every_process_shows_the_requests_of_all(tmp_path, workers):
    async def scenario():
        with Server(tmp_path, workers=workers, lame_duck_s=60.0) as server:
            await server.up()
            assert {await shown(server, "in_flight") for _ in range(6)} == {0.0}
            client = server.client(instance=6.0)
            kinds = ("v1-new", "v2-new", "v1-kept", "grpc-new")
            asked = [asyncio.create_task(client.ask(kind)) for kind in kinds]
            await until(lambda: shown(server, "in_flight"), float(len(kinds)))
            assert {await shown(server, "in_flight") for _ in range(6)} == {float(len(kinds))}
            server.signal()
            await until(lambda: shown(server, "draining"), 1.0)
            assert await asyncio.gather(*asked) == [1] * len(kinds)
            assert await shown(server, "drain_seconds") > 0
            await until(lambda: shown(server, "drained_total"), float(len(kinds)))
            assert await shown(server, "in_flight") == 0
            await client.close()
            server.signal(signal.SIGINT)
            assert await server.ended() == 128 + signal.SIGINT

    asyncio.run(scenario())


@pytest.mark.integration
@needs_workers
def test_what_a_dead_worker_had_in_flight_counts_as_lost(tmp_path):
    async def scenario():
        with Server(tmp_path, workers=2, lame_duck_s=0.2) as server:
            await server.up()
            client = server.client(instance=60.0)
            asked = [asyncio.create_task(client.ask("v1-new")) for _ in range(3)]
            await until(lambda: shown(server, "in_flight"), float(len(asked)))
            await kill_workers(server, asked)
            await until(lambda: settled(server), (0.0, float(len(asked))))
            await client.close()
            server.signal()
            assert await server.ended() == 0
            assert "3 lost" in server.log

    asyncio.run(scenario())


async def kill_workers(server, asked):
    """Kill the workers, and wait until those who asked them know."""
    for pid in re.findall(r"worker (\d+) started", server.log):
        os.kill(int(pid), signal.SIGKILL)
    await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.integration
@needs_workers
def test_what_a_worker_that_dies_while_it_drains_had_in_flight_counts_as_lost(tmp_path):
    async def scenario():
        with Server(tmp_path, workers=2, lame_duck_s=0.2) as server:
            await server.up()
            client = server.client(instance=60.0)
            asked = [asyncio.create_task(client.ask("v1-new")) for _ in range(3)]
            await server.begun(3)
            server.signal()
            await server.noticed()
            assert "3 requests in flight" in server.log, "requests, not workers"
            await kill_workers(server, asked)
            assert await server.ended() == 0
            assert "0 requests drained, 0 refused, 3 lost" in server.log

    asyncio.run(scenario())


async def until(ask, wanted, timeout=60):
    """Ask again and again until the answer is *wanted*."""
    end = time.monotonic() + timeout
    while (found := await ask()) != wanted:
        assert time.monotonic() < end, found
        await asyncio.sleep(0.05)


async def settled(server):
    """In flight and lost, once a worker answers again."""
    try:
        return await shown(server, "in_flight"), await shown(server, "lost_total")
    except OSError:
        return None


@pytest.mark.slow
@needs_workers
def test_a_dead_worker_is_replaced(tmp_path):
    async def scenario():
        with Server(tmp_path, workers=2, lame_duck_s=0.2) as server:
            await server.up()
            pids = [int(pid) for pid in re.findall(r"worker (\d+) started", server.log)]
            os.kill(pids[0], signal.SIGKILL)
            end = time.monotonic() + 60
            while server.log.count("Application startup complete") < 3:
                assert time.monotonic() < end, server.log[-2000:]
                await asyncio.sleep(0.05)
            assert await server.client().ask("v2-new") == 1
            server.signal()
            assert await server.ended() == 0

    asyncio.run(scenario())
