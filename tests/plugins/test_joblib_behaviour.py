"""The shared backend in one process: claims, options, limits, the local tier, the command line."""

import asyncio
import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from click.testing import CliRunner
from joblib import Memory, expires_after
from tests.faults.nodes import wait_for

import joblib_ext  # noqa: F401  # registers the backend
from joblib_ext import _claims, _limits
from joblib_ext.cli import joblib as command
from mlops_ext.errors import SettingsError


@pytest.fixture
def memory(tmp_path):
    return Memory(
        str(tmp_path / "cache"), backend="shared", verbose=0, backend_options={"lease_s": 0.5}
    )


def stored(location, pattern="items/*/*/*/*"):
    return [path for path in Path(location).rglob(pattern) if path.is_file()]


class TestSingleFlight:
    def test_threads_compute_once(self, memory):
        calls, started = [], threading.Barrier(8)

        def function(x):
            calls.append(x)
            time.sleep(0.2)
            return x

        cached = memory.cache(function)

        def run(_):
            started.wait()
            return cached(1)

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(run, range(8))) == [1] * 8
        assert calls == [1]

    def test_an_exception_of_the_user_releases_the_claim(self, memory, tmp_path):
        kept = []

        def function(x):
            raise ValueError(x)

        cached = memory.cache(function)
        for x in (1, 1, 2, 2):
            try:
                cached(x)
            except ValueError as error:
                if x == 2:
                    kept.append(error)  # keeps joblib's frame, and all it holds on to
            if x == 1:
                assert stored(tmp_path) == []
        wait_for(lambda: not stored(tmp_path))  # the heartbeat sees that the calls have ended
        assert len(kept) == 2

    def test_nested_and_recursive_calls_do_not_wait_for_themselves(self, memory):
        def inner(x):
            return x + 1

        inner_cached = memory.cache(inner)

        def factorial(n):
            return 1 if n == 0 else n * cached(n - 1) * inner_cached(0)

        cached = memory.cache(factorial)
        assert cached(6) == 720

    def test_a_call_of_the_same_key_from_within_computes(self, memory):
        depth = []

        def function(x):
            depth.append(x)
            return x if len(depth) > 1 else cached(x)

        cached = memory.cache(function)
        assert cached(5) == 5
        assert depth == [5, 5]

    def test_a_forked_child_does_not_wait_for_its_parent(self, memory):
        in_child = []

        def function(x):
            if in_child:
                return x
            child = os.fork()
            if child == 0:
                in_child.append(True)
                os._exit(0 if cached(x) == x else 1)
            return os.waitpid(child, 0)[1]

        cached = memory.cache(function)
        assert cached(1) == 0

    def test_an_event_loop_is_never_blocked(self, memory):
        calls = []

        async def function(x):
            calls.append(x)
            await asyncio.sleep(0.05)
            return x

        cached = memory.cache(function)

        async def main():
            return await asyncio.gather(*(cached(1) for _ in range(4)), cached(2))

        assert asyncio.run(asyncio.wait_for(main(), 20)) == [1, 1, 1, 1, 2]
        count = len(calls)
        assert asyncio.run(main()) == [1, 1, 1, 1, 2]
        assert len(calls) == count

    def test_looking_and_forcing_take_no_claim(self, memory, tmp_path):
        seen = []

        def function(x):
            seen.extend(_claims._held)
            return x

        cached = memory.cache(function)
        assert not cached.check_call_in_cache(1)
        assert stored(tmp_path) == []
        cached.call(1)
        assert seen == []
        assert cached.check_call_in_cache(1)

    def test_it_can_be_switched_off(self, tmp_path):
        options = {"single_flight": False}
        memory = Memory(str(tmp_path), backend="shared", verbose=0, backend_options=options)
        seen = []

        def function(x):
            seen.extend(_claims._held)
            return x

        assert memory.cache(function)(1) == 1
        assert seen == []

    def test_a_bounded_wait_ends_in_computing(self, tmp_path):
        options = {"wait_s": 0.3}
        memory = Memory(str(tmp_path), backend="shared", verbose=0, backend_options=options)
        first, release = threading.Event(), threading.Event()
        calls = []

        def function(x):
            calls.append(x)
            if len(calls) == 1:
                first.set()
                release.wait(60)
            return x

        cached = memory.cache(function)
        owner = threading.Thread(target=cached, args=(1,))
        owner.start()
        first.wait()
        assert cached(1) == 1
        release.set()
        owner.join()
        assert calls == [1, 1]

    def test_a_stopped_owner_is_taken_over_and_its_late_result_does_no_harm(self, tmp_path):
        code = """
            import sys, time
            import joblib_ext
            from joblib import Memory
            options = {"lease_s": 0.5}
            memory = Memory(sys.argv[1], backend="shared", verbose=0, backend_options=options)
            def function(x):
                if sys.argv[2] == "slow":
                    print("computing", flush=True)
                    sys.stdin.readline()
                return x
            function.__module__ = "work"
            print(memory.cache(function)(7), flush=True)
        """

        def start(speed):
            return subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code), tmp_path, speed],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )

        owner = start("slow")
        assert owner.stdout.readline() == "computing\n"
        owner.send_signal(signal.SIGSTOP)
        other = start("fast")
        assert other.communicate(timeout=60)[0] == "7\n"
        owner.send_signal(signal.SIGCONT)
        assert owner.communicate("\n", timeout=60)[0] == "7\n"
        assert start("fast").communicate(timeout=60)[0] == "7\n"


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

    def test_readers_and_writers_go_on_while_the_store_is_reduced_and_cleared(self, memory):
        stop = threading.Event()
        troubles, rounds = [], []

        def function(x):
            return x, "y" * 300

        def work():
            cached = memory.cache(function)
            number = 0
            while not stop.is_set():
                number += 1
                try:
                    assert cached(number % 50) == (number % 50, "y" * 300)
                    found = cached.call_and_shelve(number % 50).get()
                    assert found == (number % 50, "y" * 300)
                except Exception as error:
                    troubles.append(error)
            rounds.append(number)

        workers = [threading.Thread(target=work) for _ in range(3)]
        for worker in workers:
            worker.start()
        for number in range(40):
            memory.reduce_size(items_limit=number % 5)
            if number % 8 == 0:
                memory.clear(warn=False)
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


class TestLocalTier:
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
        assert found["orphans"] == found["corrupt"] == found["claims"] == 0
        assert "function" in self.run("stats", tmp_path / "cache")

    def test_stats_draw_a_picture(self, memory, tmp_path):
        pytest.importorskip("matplotlib")
        self.fill(memory)
        self.run("stats", tmp_path / "cache", "--plot", tmp_path / "out.png")
        assert (tmp_path / "out.png").read_bytes()[1:4] == b"PNG"

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
        assert "holds no cache of the shared backend" in str(done.exception)


@pytest.fixture(autouse=True)
def no_claims_left():
    yield
    with contextlib.suppress(KeyError):
        assert not _claims._held


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


def test_the_heartbeat_keeps_no_frame_of_a_call(tmp_path):
    np = pytest.importorskip("numpy")
    cached = Memory(str(tmp_path), backend="shared", verbose=0).cache(large_with_a_beat)
    gc.disable()
    try:
        assert cached(np.arange(3))[0] == 2
        assert cached.check_call_in_cache(np.arange(3))
    finally:
        gc.enable()


def large_with_a_beat(x):
    """A large result, which is published when the call's frame goes; a beat looks at it before."""
    beat = threading.Thread(target=_claims._release_abandoned, args=(list(_claims._held.values()),))
    beat.start()
    beat.join()
    return x[2].repeat(2_000_000)
