"""The same guarantees in Azure Blob storage, as far as Microsoft's own emulator shows them."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import uuid
import warnings

import numpy as np
import pytest
from joblib import Memory
from tests.faults.nodes import wait_for
from tests.plugins.joblib_ext.stores.objects.test_workers import WORKER, computations, go
from tests.support.azurite import AZURITE, azure_access, azurite

import joblib_ext  # noqa: F401  # registers the backend
from joblib_ext.maintenance.garbage import collect_garbage
from joblib_ext.maintenance.stats import statistics, verify_entries


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    pytest.importorskip("obstore")
    if AZURITE is None:
        pytest.skip("azurite-blob is not on the PATH (npm install azurite; needs Node)")
    with azurite(tmp_path_factory.mktemp("azurite")) as found:
        yield found


@pytest.fixture
def make(port):
    location = f"az://tests/{uuid.uuid4().hex}"

    def make(**options):
        options = {"lease_s": 1.0, "storage_options": azure_access(port)} | options
        return Memory(location, backend="shared", verbose=0, backend_options=options)

    return make


def test_an_azure_container_holds_a_cache(make, tmp_path):
    calls = []

    def f(x):
        calls.append(x)
        return {"x": x, "rows": np.arange(x)}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cached = make().cache(f)
        for x in (3, 200_000):
            assert (cached(x)["rows"] == np.arange(x)).all()
            assert (make(local_tier=str(tmp_path)).cache(f)(x)["rows"] == np.arange(x)).all()
            assert (make().cache(f)(x)["rows"] == np.arange(x)).all()
    assert calls == [3, 200_000]
    memory = make()
    store = memory.store_backend._runtime.store
    assert store.keeps_conditions()
    assert len(memory.store_backend.get_items()) == statistics(store).entries == 2
    entry = next(found for found in store.walk() if found.is_entry and found.size < 100_000)
    data = bytearray(store.read(entry.path))
    data[80] ^= 1
    store.write(entry.path, bytes(data))
    assert len(verify_entries(store).corrupt) == 1
    assert collect_garbage(store, min_age_s=0.0).corrupt == 1
    memory.reduce_size(items_limit=0)
    assert memory.store_backend.get_items() == []
    cached(3)
    memory.clear(warn=False)
    assert not cached.check_call_in_cache(3)


def test_of_processes_that_share_a_container_one_computes_and_a_dead_one_is_taken_over(
    make, tmp_path
):
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    backend = make().store_backend
    where = backend.location.removesuffix("/joblib")
    options = {"lease_s": 1.0, "storage_options": dict(backend.options.storage_options)}
    command = [sys.executable, script, where, json.dumps(options), tmp_path / "log"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    owner, *others = workers = [
        subprocess.Popen([*command, seconds], **pipes) for seconds in ("600", "1", "1", "1")
    ]
    for worker in workers:
        assert worker.stdout.readline() == "ready\n"
    go([owner])
    wait_for(lambda: computations(tmp_path))
    go(others)
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    assert [other.communicate(timeout=120)[0] for other in others] == ["1\n"] * 3
    assert len(computations(tmp_path)) == 2
