"""What a parent knows of its workers when a signal comes, whatever its own loop is doing."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from kserve_ext.endpoints import workers
from kserve_ext.endpoints.workers import DRAIN, FAILED, READY, WorkersEndpoint
from kserve_ext.settings import KServeSettings
from kserve_ext.shutdown.drain import Drain
from mlops_ext.shutdown import Phase

pytestmark = pytest.mark.timeout(60)


def worker(pipe, said):
    """Serves at once, and tells back what its parent orders."""
    pipe.send((READY,))
    said.set()
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(("heard", *pipe.recv()))


def test_a_signal_counts_what_workers_said_while_the_parent_s_loop_is_stuck():
    """gRPC may take a second to start on a busy machine; the workers are in service by then."""
    context = multiprocessing.get_context("spawn")
    said = context.Event()

    def make(share, _):
        return context.Process(target=worker, args=(share.pipe, said))

    drain = Drain(may_kill=False)
    endpoint = WorkersEndpoint(make, 1, drain, [])
    drain.endpoints.append(endpoint)
    endpoint.launch_all()
    (only,) = endpoint.workers
    try:
        assert said.wait(30)  # and no loop listens
        drain.signal(signal.SIGTERM)
        assert drain.state.phase is Phase.LAME_DUCK
        assert only.pipe.recv() == ("heard", DRAIN, signal.SIGTERM, True, None)
    finally:
        only.process.kill()
        only.process.join()
        only.pipe.close()


def maker(target, *arguments):
    context = multiprocessing.get_context("spawn")

    def make(share, _):
        return context.Process(target=target, args=(share.pipe, *arguments))

    return make


def fail(pipe):
    pipe.send((FAILED, "OSError in load, model.py:7"))
    raise SystemExit(3)


def test_workers_that_cannot_start_are_given_up_with_the_reason(monkeypatch):
    monkeypatch.setattr(workers, "FIRST_PAUSE_S", 0.01)
    endpoint = WorkersEndpoint(maker(fail), 2, Drain(may_kill=False), [])
    with pytest.raises(RuntimeError, match=r"5 workers in a row .* OSError in load, model.py:7"):
        asyncio.run(endpoint.serve())
    asyncio.run(endpoint.finish())


def compute(pipe):
    """Ready, and then in C code that holds Python's lock."""
    pipe.send((READY,))
    while True:
        sum(range(10**8))


@pytest.mark.skipif(os.name != "posix", reason="stops a process by a signal")
def test_a_worker_that_computes_is_left_alone_and_one_that_hangs_is_replaced(monkeypatch):
    monkeypatch.setattr(workers, "PING_S", 0.1)
    drain = Drain(may_kill=False, settings=KServeSettings(worker_timeout_s=2))
    endpoint = WorkersEndpoint(maker(compute), 1, drain, [])

    async def scenario():
        serving = asyncio.create_task(endpoint.serve())
        while not endpoint.started:  # noqa: ASYNC110  # seen from another process
            await asyncio.sleep(0.05)
        (busy,) = endpoint.workers
        end = time.monotonic() + 5
        while time.monotonic() < end:
            await asyncio.sleep(0.05)
            assert endpoint.workers == [busy]
        os.kill(busy.process.pid, signal.SIGSTOP)
        while endpoint.workers[0].process.pid == busy.process.pid:  # noqa: ASYNC110  # the same
            await asyncio.sleep(0.05)
        serving.cancel()
        await endpoint.finish()

    asyncio.run(scenario())


ORPHAN = """
import os, time
from multiprocessing import Pipe
from kserve_ext.endpoints import worker_process
from kserve_ext.shutdown.drain import Drain

ours, theirs = Pipe()
if os.fork() == 0:
    ours.close()
    drain = Drain(may_kill=False)
    worker_process._listen(theirs, drain)
    print("ends", drain.ending, flush=True)
    os._exit(0)
helper = os.fork()
if helper == 0:
    time.sleep(300)
    os._exit(0)
print(helper, flush=True)
ours.send(("ping",))
ours.recv()  # the worker listens
os.kill(os.getpid(), 9)
"""


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_a_worker_ends_with_its_parent_though_a_user_s_process_holds_the_parent_s_end():
    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True) as one:
        helper = int(one.stdout.readline())
        try:
            assert one.stdout.readline() == "ends True\n"
        finally:
            os.kill(helper, signal.SIGKILL)
