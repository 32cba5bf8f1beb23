"""The shared backend in one process: options, limits, the local tier, the command line."""

import contextlib
import gc
import json
import os
import shutil
import threading
import time
import warnings
from pathlib import Path

import pytest
from click.testing import CliRunner
from joblib import Memory, expires_after
from tests.support.joblib_files import stored

import joblib_ext  # noqa: F401  # registers the backend
from joblib_ext.cli import joblib as command
from joblib_ext.maintenance.find import find_store
from joblib_ext.maintenance.garbage import collect_garbage
from joblib_ext.stores.files import eviction as _limits
from mlops_ext.errors import SettingsError


class TestOptions:
    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("lease", 1),
            ("lease_s", -1),
            ("wait_s", float("inf")),
            ("durability", "maybe"),
            ("verify", "sometimes"),
            ("sign_key", ""),
            ("sign_key", 5),
            ("local_tier_bytes", 0),
        ],
    )
    def test_what_cannot_work_is_refused_with_its_name(self, tmp_path, option, value):
        with pytest.raises(SettingsError, match=option):
            Memory(str(tmp_path), backend="shared", verbose=0, backend_options={option: value})

    def test_a_misspelt_option_is_told(self, tmp_path):
        with pytest.raises(SettingsError, match="did you mean single_flight"):
            Memory(str(tmp_path), backend="shared", backend_options={"single_fligth": True})

    def test_compression_that_is_unknown_is_refused(self, tmp_path):
        with pytest.raises(SettingsError, match="compress"):
            Memory(str(tmp_path), backend="shared", compress=("zstd9", 3))

    def test_options_come_from_the_environment(self, tmp_path, monkeypatch):
        monkeypatch.setenv("MLOPS_EXT_JOBLIB_LEASE_S", "9")
        assert Memory(str(tmp_path), backend="shared").store_backend.options.lease_s == 9

    def test_an_entry_survives_with_fsync(self, tmp_path):
        options = {"durability": "fsync"}
        memory = Memory(str(tmp_path), backend="shared", verbose=0, backend_options=options)
        assert memory.cache(abs)(-3) == memory.cache(abs)(-3) == 3


def test_expiry_works_and_meets_no_entry_without_metadata(memory):
    calls = []

    def function(x):
        calls.append(x)
        return x

    cached = memory.cache(function, cache_validation_callback=expires_after(hours=1))
    assert (cached(1), cached(1)) == (1, 1)
    cached.call(2)
    assert cached(2) == 2
    expired = memory.cache(function, cache_validation_callback=expires_after(seconds=-1))
    assert expired(1) == 1
    assert calls == [1, 2, 1]


@pytest.mark.parametrize("location", ["s4://bucket/cache", "http://host/a", "s3:/bucket/joblib"])
def test_the_address_of_a_service_makes_no_folder(tmp_path, monkeypatch, location):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match="location"):
        Memory(location, backend="shared", verbose=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["trash", "corrupt", "items"])
@pytest.mark.parametrize("use", ["clear", "gc"])
def test_a_link_in_place_of_a_stores_own_folder_is_never_followed(tmp_path, name, use):
    memory = Memory(tmp_path / "cache", backend="shared", verbose=0)
    cached = memory.cache(len)
    assert cached("abc") == 3
    other = tmp_path / "other"
    kept = other / "function" / ("0" * 24) / "aa" / "somebody-elses.tmp"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"")
    os.utime(kept, (0, 0))
    own = tmp_path / "cache" / "mlops-shared-1" / name
    if own.exists():
        shutil.rmtree(own)
    own.symlink_to(other, target_is_directory=True)
    if use == "clear":
        store = find_store(tmp_path / "cache")
        store.clear(store.layout.items)
    else:
        collect_garbage(find_store(tmp_path / "cache"))
    assert kept.exists()
    assert [path.name for path in other.iterdir()] == ["function"]


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="Linux counts what is read there")
@pytest.mark.parametrize(
    ("mmap_mode", "verify", "times"), [(None, "always", 1), ("r", "always", 1), ("r", "never", 0)]
)
def test_a_hit_reads_a_large_result_no_more_often_than_needed(tmp_path, mmap_mode, verify, times):
    np = pytest.importorskip("numpy")
    options = {"backend_options": {"verify": verify}, "mmap_mode": mmap_mode}
    cached = Memory(tmp_path, backend="shared", verbose=0, **options).cache(
        lambda n: np.zeros(n) + 0
    )

    def read():
        return int(Path("/proc/self/io").read_text().split()[1])

    size = cached(4_000_000).nbytes
    before = read()
    assert cached(4_000_000).nbytes == size
    assert times * size <= read() - before < (times + 0.5) * size


def test_a_large_result_is_stored_before_the_caller_gets_it(tmp_path):
    """Also where an exception is kept, and with it the frame of the call."""
    np = pytest.importorskip("numpy")
    kept = []

    def load(n):
        try:
            int("no number")
        except ValueError as error:
            kept.append(error)
        return np.zeros(2_000_000)

    cached = Memory(tmp_path, backend="shared", verbose=0).cache(load)
    result = cached(1)
    assert cached.check_call_in_cache(1)
    result += 1
    kept.clear()
    assert cached(1).sum() == 0


def test_a_result_whose_call_was_cut_off_is_not_stored(tmp_path):
    memory = Memory(tmp_path, backend="shared", verbose=0)

    class Sly:
        def __repr__(self):
            raise KeyboardInterrupt

    cached = memory.cache(lambda x: bytearray(10))
    with pytest.raises(KeyboardInterrupt):
        cached(Sly())
    gc.collect()
    assert not memory.store_backend.get_items()


def test_a_slow_publish_is_not_blamed_on_the_arguments(tmp_path, monkeypatch):
    memory = Memory(tmp_path, backend="shared", verbose=0)
    store = type(memory.store_backend._runtime.store)
    publish, clock = store.publish, [0.0]

    def slow_publish(self, *arguments):
        clock[0] += 10
        publish(self, *arguments)

    class Time:
        def __getattr__(self, name):
            return (lambda: clock[0]) if name == "time" else getattr(time, name)

    monkeypatch.setattr(store, "publish", slow_publish)
    monkeypatch.setattr("joblib_ext.memorized.time", Time())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert memory.cache(len)("abc") == 3
    assert clock[0] == 10


class TestLimits:
    def fill(self, memory, count):
        def function(x):
            return "x" * 500

        cached = memory.cache(function)
        for number in range(count):
            cached(number)
        return cached

    def test_the_oldest_go_first(self, memory):
        cached = self.fill(memory, 20)
        items = {item.path: item for item in memory.store_backend.get_items()}
        for number, path in enumerate(sorted(items)):
            os.utime(path, (1_000_000 + number, 1_000_000))
        memory.reduce_size(items_limit=5)
        left = sorted(item.path for item in memory.store_backend.get_items())
        assert left == sorted(items)[-5:]
        assert cached(0) == "x" * 500

    @pytest.mark.parametrize("limits", [{"items_limit": 300}, {"bytes_limit": 200_000}])
    def test_large_stores_keep_their_limits_by_sampling(self, memory, monkeypatch, limits):
        monkeypatch.setattr(_limits, "EXACT_UP_TO", 100)
        self.fill(memory, 400)
        for number, item in enumerate(memory.store_backend.get_items()):
            os.utime(item.path, (1_000_000 + number, 1_000_000))
        memory.reduce_size(**limits)
        items = memory.store_backend.get_items()
        if "items_limit" in limits:
            assert len(items) == 300
        assert sum(item.size for item in items) > 150_000
        assert sum(item.size for item in items) <= limits.get("bytes_limit", 400_000)

    @pytest.mark.integration
    def test_readers_and_writers_go_on_while_the_store_is_reduced_and_cleared(self, memory):
        stop = threading.Event()
        troubles, rounds = [], [0, 0, 0]

        def function(x):
            return x, "y" * 300

        def work(mine):
            cached = memory.cache(function)
            while not stop.is_set():
                rounds[mine] += 1
                number = rounds[mine]
                try:
                    assert cached(number % 50) == (number % 50, "y" * 300)
                    reference = cached.call_and_shelve(number % 50)
                    with contextlib.suppress(KeyError):  # it was cleared, which is meant
                        assert reference.get() == (number % 50, "y" * 300)
                except Exception as error:
                    troubles.append(error)

        workers = [threading.Thread(target=work, args=(mine,)) for mine in range(3)]
        for worker in workers:
            worker.start()
        number, end = 0, time.monotonic() + 60
        while (number < 40 or min(rounds) <= 10) and time.monotonic() < end:
            memory.reduce_size(items_limit=number % 5)
            if number % 8 == 0:
                memory.clear(warn=False)
            number += 1
        stop.set()
        for worker in workers:
            worker.join()
        assert troubles == []
        assert min(rounds) > 10


def test_a_reference_can_be_read_although_its_entry_was_evicted(memory):
    def function(x):
        return x

    references = [memory.cache(function).call_and_shelve(x) for x in range(20)]
    memory.reduce_size(items_limit=0)
    assert [reference.get() for reference in references] == list(range(20))
    memory.clear(warn=False)
    with pytest.raises(KeyError):
        references[0].get()


class TestLocalCache:
    @pytest.fixture
    def tiered(self, tmp_path):
        options = {"local_tier": str(tmp_path / "local"), "local_tier_bytes": 200_000}
        return Memory(str(tmp_path / "far"), backend="shared", verbose=0, backend_options=options)

    def function(self, calls):
        def function(x):
            calls.append(x)
            return "x" * 1000

        return function

    def test_what_was_cleared_is_not_served(self, tiered, tmp_path):
        calls = []
        cached = tiered.cache(self.function(calls))
        for _ in range(3):
            cached(1)
        assert calls == [1]
        assert stored(tmp_path / "local", "*")
        Memory(str(tmp_path / "far"), backend="shared", verbose=0).clear(warn=False)
        cached(1)
        assert calls == [1, 1]

    def test_a_hit_needs_only_the_head_of_the_shared_entry(self, tiered, tmp_path):
        calls = []
        cached = tiered.cache(self.function(calls))
        cached(1)
        cached(1)
        (far,) = stored(tmp_path / "far")
        far.write_bytes(far.read_bytes()[:64])  # the rest is on the local disk
        assert cached(1) == "x" * 1000
        assert calls == [1]

    def test_a_damaged_copy_is_not_served(self, tiered, tmp_path):
        calls = []
        cached = tiered.cache(self.function(calls))
        cached(1)
        cached(1)
        (copy,) = stored(tmp_path / "local", "*")
        copy.write_bytes(copy.read_bytes()[:-9] + b"damaged!!")
        assert cached(1) == "x" * 1000
        assert calls == [1]

    def test_the_limit_is_kept(self, tiered, tmp_path):
        cached = tiered.cache(self.function([]))
        for number in range(400):
            cached(number)
            cached(number)
        assert sum(path.stat().st_size for path in stored(tmp_path / "local", "*")) <= 220_000


class TestCommandLine:
    def run(self, *arguments, code=0):
        done = CliRunner().invoke(command, [str(argument) for argument in arguments])
        assert done.exit_code == code, done.output
        return done.output

    def fill(self, memory):
        def function(x):
            return "x" * 100

        cached = memory.cache(function)
        for number in range(5):
            cached(number)

    def test_stats_count_what_is_there(self, memory, tmp_path):
        self.fill(memory)
        found = json.loads(self.run("stats", tmp_path / "cache", "--json"))
        assert found["entries"] == 5
        assert found["versions"][0]["entries"] == 5
        assert found["orphans"] == found["corrupt"] == found["leases"] == 0
        assert "function" in self.run("stats", tmp_path / "cache")

    def test_verify_finds_and_repairs_damage(self, memory, tmp_path):
        self.fill(memory)
        assert "5 entries verify, 0 do not" in self.run("verify", tmp_path / "cache")
        damaged = stored(tmp_path)[0]
        damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert "1 do not" in self.run("verify", tmp_path / "cache", "--no-repair", code=1)
            assert damaged.exists()
            assert "1 moved aside" in self.run("verify", tmp_path / "cache", code=1)
        assert "4 entries verify, 0 do not" in self.run("verify", tmp_path / "cache")
        found = json.loads(self.run("stats", tmp_path / "cache", "--json"))
        assert found["corrupt"] == found["events"]["corrupt"] == 1

    def test_gc_removes_leftovers_and_clear_removes_all(self, memory, tmp_path):
        from mlops_ext.files import temp_name

        self.fill(memory)
        shard = stored(tmp_path)[0].parent
        (shard / temp_name("entry").replace(f"-{os.getpid():x}-", "-7ffffff-")).write_bytes(b"half")
        assert "removed 1 orphans" in self.run("gc", tmp_path / "cache")
        assert len(stored(tmp_path)) == 5
        assert "removed" in self.run("clear", tmp_path / "cache", "--yes")
        assert stored(tmp_path) == []

    def test_a_path_without_a_cache_is_told(self, tmp_path):
        done = CliRunner().invoke(command, ["stats", str(tmp_path)])
        assert "expected the location of a Memory" in str(done.exception)


@pytest.mark.parametrize("mmap_mode", [None, "r"])
def test_a_large_result_is_there_when_the_call_returns(tmp_path, mmap_mode):
    np = pytest.importorskip("numpy")
    calls = []
    memory = Memory(str(tmp_path), backend="shared", verbose=0, mmap_mode=mmap_mode)

    def function(x):
        calls.append(x)
        return np.full(2_000_000, x, dtype=float)

    cached = memory.cache(function)
    assert cached(1)[-1] == 1
    assert cached.check_call_in_cache(1)
    assert cached.call_and_shelve(2).get()[0] == 2
    assert cached(1)[0] == 1
    assert cached(2)[0] == 2
    assert calls == [1, 2]
