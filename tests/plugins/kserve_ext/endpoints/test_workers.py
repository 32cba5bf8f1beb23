"""What a parent knows of its workers when a signal comes, whatever its own loop is doing."""

import contextlib
import multiprocessing
import signal

import pytest

from kserve_ext.endpoints.workers import DRAIN, READY, SERVING, WorkersEndpoint
from kserve_ext.shutdown.drain import Drain
from mlops_ext.shutdown import Phase

pytestmark = pytest.mark.timeout(60)


def worker(pipe, said):
    """Serves at once, is asked at once, and tells back what its parent orders."""
    pipe.send((READY,))
    pipe.send((SERVING,))
    said.set()
    with contextlib.suppress(EOFError):
        while True:
            pipe.send(("heard", *pipe.recv()))


def test_a_signal_counts_what_workers_said_while_the_parent_s_loop_is_stuck():
    """gRPC may take a second to start on a busy machine; the workers are in service by then."""
    context = multiprocessing.get_context("spawn")
    said = context.Event()

    def launch():
        ours, theirs = context.Pipe()
        process = context.Process(target=worker, args=(theirs, said))
        process.start()
        theirs.close()
        return process, ours

    drain = Drain(may_kill=False)
    endpoint = WorkersEndpoint(launch, 1, drain, [])
    drain.endpoints.append(endpoint)
    endpoint.launch_all()
    (only,) = endpoint.workers
    try:
        assert said.wait(30)  # and no loop listens
        drain.signal(signal.SIGTERM)
        assert drain.state.phase is Phase.LAME_DUCK
        heard = [only.pipe.recv() for _ in range(2)]
        assert heard == [("heard", SERVING), ("heard", DRAIN, signal.SIGTERM, True, None)]
    finally:
        only.process.kill()
        only.process.join()
        only.pipe.close()
