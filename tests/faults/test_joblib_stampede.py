"""Many processes on several nodes call one cold function."""

import contextlib

import pytest
from tests.faults.nodes import LOST, Node, finish, need_namespaces, shares, wait_for

pytestmark = [pytest.mark.needs_namespaces]

WORKER = """
    import os, sys, time
    share, log, backend, seconds = sys.argv[1:5]
    options = {} if backend == "local" else {"lease_s": float(sys.argv[5])}
    import joblib_ext
    from joblib import Memory

    def note(text):
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, text.encode() + b"\\n")
        os.close(descriptor)

    memory = Memory(share + "/cache", backend=backend, verbose=0, backend_options=options)

    def slow(x):
        note("computing")
        time.sleep(float(seconds))
        note("computed")
        return x * 2

    slow.__module__ = "work"
    cached = memory.cache(slow)
    print("ready", flush=True)
    sys.stdin.readline()
    print(cached(21))
"""


def lines(path):
    return path.read_text().split() if path.exists() else []


def stampede(
    shares_, tmp_path, *, processes, backend="shared", seconds=1.0, kill=False, environs=({},)
):
    """How often a cold function was computed; node i has the i-th of *environs*, in turn."""
    log = tmp_path / "log"
    nodes = [Node(f"node{number}", share) for number, share in enumerate(shares_)]
    lease_s = 6.0 if kill else 15.0
    workers = []
    for number in range(processes):
        node, environ = nodes[number % len(nodes)], environs[number % len(nodes) % len(environs)]
        lasts = 600.0 if kill and not workers else seconds  # it is killed before
        workers.append(node.start(WORKER, log, backend, lasts, lease_s, **environ))
    for worker in workers:
        assert worker.stdout.readline() == "ready\n", worker.communicate()[1]
    if kill:
        kill_the_first_owner(workers, log)
    for worker in workers:
        with contextlib.suppress(BrokenPipeError):
            worker.stdin.write("\n")
            worker.stdin.flush()
    outputs = finish(workers)
    assert outputs == ["42\n"] * len(workers)
    return lines(log).count("computing")


def kill_the_first_owner(workers, log):
    """Let one start, kill it while it computes, and take it out of the list."""
    owner = workers.pop(0)
    owner.stdin.write("\n")
    owner.stdin.flush()
    wait_for(lambda: "computing" in lines(log))
    owner.kill()  # unshare --kill-child passes it on as SIGKILL
    owner.wait()
    owner.communicate()


@pytest.fixture(
    params=[
        "ext4",
        pytest.param("fuse", marks=pytest.mark.slow),
        pytest.param("fuse-cached", marks=pytest.mark.integration),
    ]
)
def kind(request):
    need_namespaces()
    return request.param


@pytest.mark.integration
def test_upstream_computes_in_every_process(tmp_path):
    need_namespaces()
    with shares("ext4", tmp_path, 2) as found:
        assert stampede(found, tmp_path, processes=6, backend="local") == 6


@pytest.mark.needs_fuse
def test_one_computes_and_the_others_wait(kind, tmp_path):
    with shares(kind, tmp_path, 4) as found:
        assert stampede(found, tmp_path, processes=8) == 1


@pytest.mark.integration
@pytest.mark.needs_fuse
def test_a_killed_owner_is_replaced_by_one(kind, tmp_path):
    with shares(kind, tmp_path, 4) as found:
        assert stampede(found, tmp_path, processes=8, kill=True) == 2


@pytest.mark.slow
@pytest.mark.needs_fuse
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kill", [False, True])
def test_thirty_two_processes_on_four_nodes(kind, tmp_path, kill):
    with shares(kind, tmp_path, 4) as found:
        computed = stampede(found, tmp_path, processes=32, kill=kill, seconds=3.0)
        assert computed == (2 if kill else 1)


@pytest.mark.slow
@pytest.mark.needs_fuse
@pytest.mark.timeout(600)
def test_thirty_two_processes_with_cached_attributes_and_lost_replies(tmp_path):
    need_namespaces()
    with shares("fuse-cached", tmp_path, 4) as found:
        for share in found:
            share.inject(round_trip_s=0.0005, lose={"operations": LOST, "rate": 0.05})
        assert stampede(found, tmp_path, processes=32, seconds=3.0) == 1
