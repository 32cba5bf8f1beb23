"""Processes that share nothing but a bucket: one computes, others wait, and a dead one is replaced."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import warnings

import pytest
from click.testing import CliRunner
from joblib import Parallel, delayed
from tests.faults.nodes import wait_for
from tests.support.object_servers import access

from joblib_ext.cli import joblib as command

WORKER = """
    import json, os, sys, time, warnings
    warnings.simplefilter("ignore")
    import joblib_ext
    from joblib import Memory
    location, options, log, seconds = sys.argv[1:]
    memory = Memory(location, backend="shared", verbose=0, backend_options=json.loads(options))
    def slow(x):
        with open(log, "a") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(float(seconds))
        return x, "y" * 100
    slow.__module__ = "work"
    cached = memory.cache(slow)
    print("ready", flush=True)
    sys.stdin.readline()
    print(cached(1)[0], flush=True)
"""


@pytest.fixture
def workers(proxy, location, tmp_path):
    """Starts processes that are about to make one call."""
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    options = json.dumps({"lease_s": 1.0, "storage_options": access(proxy.address)})
    running = []

    def start(count, seconds):
        arguments = [script, location, options, tmp_path / "log", str(seconds)]
        made = [
            subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(count)
        ]
        running.extend(made)
        for one in made:
            assert one.stdout.readline() == "ready\n"
        return made

    yield start
    for one in running:
        one.kill()
        one.communicate()


def computations(tmp_path):
    log = tmp_path / "log"
    return log.read_text().split() if log.exists() else []


def go(processes):
    for one in processes:
        one.stdin.write("\n")
        one.stdin.flush()


def test_of_many_processes_one_computes_although_replies_are_lost(workers, proxy, tmp_path):
    count = {"n": 0}

    def lose(_method, _path):
        count["n"] += 1
        return "lost" if count["n"] % 20 == 0 else None

    proxy.spoil = lose
    processes = workers(6, 1.0)
    go(processes)
    assert [one.communicate(timeout=120)[0] for one in processes] == ["1\n"] * 6
    assert len(computations(tmp_path)) == 1


def test_an_owner_that_is_killed_is_taken_over_by_one(workers, tmp_path):
    (owner,), others = workers(1, 600.0), workers(3, 0.5)
    go([owner])
    wait_for(lambda: computations(tmp_path))
    go(others)
    os.kill(owner.pid, signal.SIGKILL)
    assert [one.communicate(timeout=120)[0] for one in others] == ["1\n"] * 3
    assert len(computations(tmp_path)) == 2


def square(memory, log, x):
    """What a worker of any kind does: the cached function comes by pickle."""
    return memory.cache(compute, ignore=["log"])(x, log)


def compute(x, log):
    with log.open("a") as file:
        file.write(f"{os.getpid()}\n")
    time.sleep(1.0)
    return x * x


@pytest.fixture
def shared(make, proxy, monkeypatch):
    """A Memory that workers can use: keys are in no pickle, so that the environment has them."""
    options = access(proxy.address)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret_access_key"])
    return make()


@pytest.mark.slow
def test_workers_of_loky_share_one_cache(shared, tmp_path):
    log = tmp_path / "log"
    with Parallel(n_jobs=3, backend="loky") as pool:
        found = pool(delayed(square)(shared, log, x % 2) for x in range(6))
    assert found == [0, 1] * 3
    assert len(computations(tmp_path)) == 2


@pytest.mark.slow
def test_workers_of_dask_share_one_cache(shared, tmp_path):
    distributed = pytest.importorskip("distributed")
    log = tmp_path / "log"
    with (
        warnings.catch_warnings(),
        distributed.LocalCluster(n_workers=3, threads_per_worker=1, dashboard_address=None) as site,
        distributed.Client(site) as client,
    ):
        warnings.simplefilter("ignore")
        tasks = [client.submit(square, shared, log, 7, pure=False) for _ in range(6)]
        assert client.gather(tasks) == [49] * 6
    assert len(computations(tmp_path)) == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_of_ray_share_one_cache(shared, tmp_path):
    ray = pytest.importorskip("ray", reason="Ray is not installed (pip install ray)")
    log = tmp_path / "log"
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    environ = {name: os.environ[name] for name in names} | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ray.init(num_cpus=3, include_dashboard=False, runtime_env={"env_vars": environ})
    try:
        run = ray.remote(square)
        assert ray.get([run.remote(shared, log, 7) for _ in range(6)]) == [49] * 6
    finally:
        ray.shutdown()
    assert len(computations(tmp_path)) == 1


def test_the_commands_take_a_url(make, proxy, location, monkeypatch):
    options = access(proxy.address)
    cached = make().cache(abs)
    for x in range(4):
        cached(-x)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["access_key_id"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret_access_key"])
    monkeypatch.setenv("AWS_ENDPOINT", options["endpoint"])
    monkeypatch.setenv("AWS_REGION", options["region"])
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")

    def run(*arguments):
        done = CliRunner().invoke(command, arguments)
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    assert json.loads(run("stats", location, "--json"))["entries"] == 4
    assert "4 entries verify, 0 do not" in run("verify", location)
    assert "0 dead leases, 0 damaged files" in run("gc", location, "--min-age", "0")
    assert "removed 4 entries" in run("clear", location, "--yes")
    assert not cached.check_call_in_cache(-1)


def test_another_server_that_speaks_s3(make, location):
    """moto, which is Python's own; a bucket has to be made there."""
    server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    moto = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        options = access(f"{host}:{port}")
        boto3.client(
            "s3",
            endpoint_url=options["endpoint"],
            aws_access_key_id="AK",
            aws_secret_access_key="SECRETKEY",
            region_name="us-east-1",
        ).create_bucket(Bucket="tests")
        memory = make(storage_options=options)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            cached = memory.cache(abs)
            assert cached(-1) == make(storage_options=options).cache(abs)(-1) == 1
        assert cached.check_call_in_cache(-1)
        assert len(memory.store_backend.get_items()) == 1
        assert memory.store_backend._runtime.store.keeps_conditions()
        memory.clear(warn=False)
        assert not cached.check_call_in_cache(-1)
    finally:
        moto.stop()
