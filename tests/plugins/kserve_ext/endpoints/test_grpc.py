"""The count of calls that gRPC has accepted and Python has not seen."""

import asyncio
import threading
import time

import grpc
import pytest

from kserve_ext.endpoints import channelz
from kserve_ext.endpoints.grpc import GrpcEndpoint
from kserve_ext.shutdown.counts import SEEN
from kserve_ext.shutdown.drain import Drain
from kserve_ext.shutdown.driver import _close

pytestmark = pytest.mark.timeout(60)

CALLS = 40


class Echo(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        async def answer(request, context):
            await asyncio.sleep(0.2)
            return request

        if handler_call_details.method == "/a/Echo":
            return grpc.unary_unary_rpc_method_handler(answer)
        return None


def test_calls_that_wait_in_grpc_are_answered_before_accepting_ends():
    answers = []

    def ask(port):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            calls = [channel.unary_unary("/a/Echo").future(b"x") for _ in range(CALLS)]
            unknown = channel.unary_unary("/a/Unknown").future(b"x")
            answers.extend(call.result(30) for call in calls)
            assert unknown.code() is grpc.StatusCode.UNIMPLEMENTED

    async def scenario():
        drain = Drain(may_kill=False)
        endpoint = GrpcEndpoint(drain)
        drain.endpoints.append(endpoint)
        server = endpoint.adopt(grpc.aio.server())
        server.add_generic_rpc_handlers([Echo()])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        assert endpoint.waiting() == 0
        client = threading.Thread(target=ask, args=(port,))
        client.start()
        while endpoint.waiting() < CALLS + 1:  # the loop is stuck here, as a busy model's is
            time.sleep(0.01)  # noqa: ASYNC251
        assert drain.counts.total(SEEN) == 0
        await _close(drain)
        assert drain.counts.total(SEEN) == CALLS, "each call was handed over before gRPC was closed"
        while endpoint.in_flight():  # noqa: ASYNC110  # no event for it
            await asyncio.sleep(0.01)
        await asyncio.to_thread(client.join)
        await endpoint.finish()

    asyncio.run(scenario())
    assert answers == [b"x"] * CALLS


def test_a_server_that_grpc_does_not_count_waits_for_nothing():
    async def scenario():
        uncounted = grpc.aio.server(options=[("grpc.enable_channelz", 0)])
        endpoint = GrpcEndpoint(Drain(may_kill=False))
        endpoint.adopt(grpc.aio.server(options=[("grpc.enable_channelz", 0)]))
        assert endpoint.waiting() == 0
        await uncounted.stop(None)

    asyncio.run(scenario())
    assert channelz.unanswered(10**9) == 0
