"""The lame duck ends early once nobody has asked for a while, if that is wanted."""

import asyncio

import pytest
from tests.support.servers.harness import Server

from kserve_ext.endpoints.asgi import gated
from kserve_ext.settings import KServeSettings
from kserve_ext.shutdown.drain import Drain

pytestmark = pytest.mark.timeout(300)


@pytest.mark.integration
@pytest.mark.parametrize("environment", [{"MLOPS_EXT_KSERVE_QUIET_S": "0.3"}, {"K_REVISION": "a"}])
def test_a_server_that_nobody_asks_ends_long_before_its_lame_duck(tmp_path, environment):
    """Behind Knative's queue-proxy, which names the revision, this is the default."""

    async def scenario():
        with Server(tmp_path, way="run", lame_duck_s=600, environment=environment) as server:
            await server.up()
            server.signal()
            assert await server.ended(timeout=200) == 0

    asyncio.run(scenario())


@pytest.mark.integration
def test_by_default_it_serves_on_though_nobody_asks(tmp_path):
    async def scenario():
        with Server(tmp_path, way="run", lame_duck_s=600) as server:
            await server.up()
            server.signal()
            assert await server.ended(timeout=3) is None
            assert await server.client().ask("v1-new") == 1

    asyncio.run(scenario())


def test_a_request_puts_the_end_off_and_scrapes_and_probes_do_not():
    now = [100.0]
    drain = Drain(settings=KServeSettings(quiet_s=5), may_kill=False, clock=lambda: now[0])

    async def app(scope, receive, send): ...

    async def send(message): ...

    def after(method, path):
        """Seconds of quiet as seen after 3 s and then a request."""
        now[0] += 3
        scope = {"type": "http", "method": method, "path": path}
        asyncio.run(gated(app, drain)(scope, None, send))
        return drain.quiet_s()

    assert after("POST", "/v1/models/m:predict") == 0
    assert after("GET", "/metrics") == 3
    assert after("GET", "/v2/health/ready") == 0, "before a signal a probe is a client"
    drain.ending = True
    assert after("GET", "/v2/health/ready") == 3
    assert after("POST", "/v2/repository/index") == 6
    assert after("POST", "/v2/models/m/infer") == 0
