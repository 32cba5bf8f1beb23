"""Rolling restart under load: what the bare server loses, and that ours loses nothing."""

import asyncio

import pytest
from tests.support.servers.harness import HAS_WORKERS, KSERVE, Server, Version, rolling_restart

pytestmark = [pytest.mark.timeout(400), pytest.mark.alone]

needs_workers = pytest.mark.skipif(not HAS_WORKERS, reason="KServe 0.14 ignores workers")


async def restart(folder, way, *, workers=1, model="m", before=255, **options):
    with Server(folder, way=way, workers=workers, **options) as server:
        await server.up()
        load, probes = await rolling_restart(server, model=model, before=before)
        status = await server.ended()
        return server, load, probes, status


@pytest.mark.integration
def test_bare_server_loses_requests_and_stays_ready(tmp_path):
    long = ("--sleep", "0.5")  # many requests are in flight at every moment
    server, load, probes, _ = asyncio.run(restart(tmp_path, "bare", flags=long))
    assert load.count()["lost"] + load.count()["stopped"] > 50
    assert not any(probe[0] == 503 for probe in probes)
    if Version("0.14.1") != KSERVE:
        assert any(event["in_flight"] for event in server.events("model stopped"))


@pytest.mark.parametrize(
    ("way", "workers", "model"),
    [
        ("subclass", 1, "m"),
        pytest.param("run", 2, "c", marks=[pytest.mark.integration, needs_workers]),
        pytest.param("patch", 1, "c", marks=pytest.mark.slow),
        pytest.param("run", 1, "m", marks=pytest.mark.slow),
        pytest.param("subclass", 2, "m", marks=[pytest.mark.slow, needs_workers]),
        pytest.param("subclass", 2, "c", marks=[pytest.mark.slow, needs_workers]),
    ],
)
def test_nothing_is_lost(tmp_path, way, workers, model):
    server, load, probes, status = asyncio.run(
        restart(tmp_path, way, workers=workers, model=model, before=500)
    )
    assert load.count() == {"ok": len(load.answers)}, load.why()
    assert len(load.answers) > 500
    answered_at = max(answer.sent_at + answer.seconds for answer in load.answers)
    assert answered_at > server.signalled_at
    assert set(probes) == {(503, 503, 503, 200)}
    assert status == 0
    stops = server.events("model stopped")
    assert [event["in_flight"] for event in stops] == [0] * len(stops)
    processes = {event["pid"] for event in stops}
    assert len(processes) == (1 if workers == 1 else workers + 1)
    assert len(stops) == 2 * len(processes), "each model once in each process"


@pytest.mark.slow
@pytest.mark.parametrize("repetition", range(3))
def test_nothing_is_lost_again(tmp_path, repetition):
    _, load, _, status = asyncio.run(restart(tmp_path, "subclass"))
    assert (load.count()["ok"], status) == (len(load.answers), 0), load.why()


@pytest.mark.slow
@needs_workers
def test_bare_workers_lose_requests(tmp_path):
    """0.13: the workers serve on forever; 0.15: models are gone while gRPC is in flight."""

    async def scenario():
        with Server(tmp_path, way="bare", workers=2) as server:
            await server.up()
            load, _ = await rolling_restart(server)
            return load, await server.ended(timeout=12)

    load, status = asyncio.run(scenario())
    assert load.count()["lost"] + load.count()["stopped"] > 0 or status is None
