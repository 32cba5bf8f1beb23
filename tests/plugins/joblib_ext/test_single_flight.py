"""Single flight in one process: threads, nesting, forks, event loops, and a process that stalls."""

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from joblib import Memory
from tests.faults.nodes import wait_for
from tests.support.joblib_files import stored

import joblib_ext  # noqa: F401  # registers the backend
from joblib_ext import single_flight
from joblib_ext.entries.entry import Entry
from joblib_ext.entries.lease_record import own_record
from joblib_ext.maintenance.find import find_store
from joblib_ext.stores import leases
from joblib_ext.stores.files.lease_source import LeaseSource
from joblib_ext.stores.store import Slot

pytestmark = pytest.mark.usefixtures("no_leases_left")

PATIENCE_S = 60
"""The longest wait for another thread: a hang fails long before the test's own time is up."""


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

    def test_an_exception_of_the_user_releases_the_lease(self, memory, tmp_path):
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
        wait_for(lambda: not stored(tmp_path))  # what tells those who wait goes after a second
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

        assert asyncio.run(asyncio.wait_for(main(), PATIENCE_S)) == [1, 1, 1, 1, 2]
        count = len(calls)
        assert asyncio.run(main()) == [1, 1, 1, 1, 2]
        assert len(calls) == count

    def test_looking_and_forcing_take_no_lease(self, memory, tmp_path):
        seen = []

        def function(x):
            seen.extend(leases._held)
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
            seen.extend(leases._held)
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

        # A function needs source: joblib before 1.6 tells others apart by a number of the process.
        script = tmp_path / "script.py"
        script.write_text(textwrap.dedent(code), encoding="utf-8")

        def start(speed):
            return subprocess.Popen(
                [sys.executable, script, tmp_path, speed],
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
        events = find_store(tmp_path).events_so_far()
        assert (events["takeover"], events["conflict"]) == (1, 1)

    @pytest.mark.parametrize("is_coroutine", [False, True])
    def test_a_forced_call_and_a_coroutine_write_once(self, memory, monkeypatch, is_coroutine):
        store = memory.store_backend._runtime.store
        publish, published = type(store).publish, []

        def count(self, slot, *arguments):
            published.append(slot.path)
            publish(self, slot, *arguments)

        async def coroutine(x):
            return x

        def function(x):
            return x

        monkeypatch.setattr(type(store), "publish", count)
        cached = memory.cache(coroutine if is_coroutine else function)
        if is_coroutine:
            assert asyncio.run(cached(1)) == asyncio.run(cached(1)) == 1
        else:
            cached.call(1)
        assert len(published) == 1
        (item,) = memory.store_backend.get_items()
        assert published == [item.path]
        metadata = memory.store_backend.get_metadata((cached.func_id, Path(item.path).name))
        assert metadata["input_args"] == {"x": "1"}

    @pytest.mark.parametrize("large", [False, True])
    def test_a_forced_call_with_mapping_returns_what_it_stored(self, tmp_path, large):
        np = pytest.importorskip("numpy")
        memory = Memory(str(tmp_path), backend="shared", verbose=0, mmap_mode="r")

        def function(x):
            return np.full(2_000_000 if large else 10, x, dtype=float)

        cached = memory.cache(function)
        found = cached.call(3)
        assert (found[0] if isinstance(found, tuple) else found)[-1] == 3
        assert cached.check_call_in_cache(3)


WAITER = """
import os, sys, time
import joblib_ext
from joblib import Memory
from joblib_ext import single_flight
folder = sys.argv[1]
def sleep(pause_s):
    with open(folder + f"/looks-{os.getpid()}", "a") as looks:
        looks.write("x")
    time.sleep(0.01)
clock = lambda: float(os.path.getsize(folder + "/clock"))  # the seconds that the test says
single_flight.acquire_or_wait.__kwdefaults__.update(sleep=sleep, clock=clock)
def function(x):
    with open(folder + "/log", "a") as log:
        log.write("x")
    while not os.path.exists(folder + "/go on"):
        time.sleep(0.01)
    return x
function.__module__ = "work"
options = {"wait_s": 3.0}
cached = Memory(folder, backend="shared", verbose=0, backend_options=options).cache(function)
print("ready", flush=True)
sys.stdin.readline()
assert cached(1) == 1
"""


@pytest.mark.timeout(120)
def test_when_the_longest_wait_is_over_one_of_those_who_wait_computes(tmp_path):
    """And when that one has computed for as long, the next: never all of them."""
    log, clock = tmp_path / "log", tmp_path / "clock"
    clock.touch()

    def look_again(count):
        """Wait until *count* processes have looked three times more."""
        before = {path: path.stat().st_size for path in tmp_path.glob("looks-*")}

        def those_who_did():
            sizes = {path: path.stat().st_size for path in tmp_path.glob("looks-*")}
            return [path for path in sizes if sizes[path] >= before.get(path, 0) + 3]

        wait_for(lambda: len(those_who_did()) >= count)

    command = [sys.executable, "-c", WAITER, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    waiters = [subprocess.Popen(command, **pipes) for _ in range(6)]
    for waiter in waiters:
        waiter.stdout.readline()
    for waiter in waiters:
        waiter.stdin.write("\n")
        waiter.stdin.flush()
    for computing in (1, 2, 3):
        wait_for(lambda: log.exists() and log.stat().st_size >= computing)  # noqa: B023  # at once
        look_again(6 - computing)
        assert log.stat().st_size == computing
        clock.write_bytes(bytes(4 * computing))  # the longest wait is over
    (tmp_path / "go on").touch()
    for waiter in waiters:
        waiter.communicate()
        assert waiter.returncode == 0


def test_a_lease_that_another_one_took_at_the_end_of_the_wait_is_waited_for(tmp_path, monkeypatch):
    """It was gone at this look, and there again when this process tried to take it."""
    options = {"wait_s": 1.0}
    memory = Memory(str(tmp_path), backend="shared", verbose=0, backend_options=options)
    store, now = memory.store_backend._runtime.store, [0.0]
    slot = Slot(store.version("work/f", "0" * 24), "ab" * 16)
    entry = Entry(b"", None)
    views = iter([None, own_record(5.0), entry])
    monkeypatch.setattr(type(store), "look", lambda *_: next(views))
    monkeypatch.setattr(type(store), "acquire", lambda *_: leases.Refusal.BY_OTHERS)

    def sleep(_):
        now[0] += 2.0 if len(now) == 1 else 0.5
        now.append(0)

    found = single_flight.acquire_or_wait(
        store, slot, own_record(5.0), clock=lambda: now[0], sleep=sleep
    )
    assert found is entry


def test_an_interpreter_held_in_the_middle_of_a_renewal_is_noticed_too(memory, monkeypatch):
    monkeypatch.setattr(leases, "_longest_s", 0.0)
    held = threading.Event()

    def renew(self):
        if not held.is_set():
            held.set()
            ctypes.PyDLL(None).usleep(1_500_000)

    monkeypatch.setattr(LeaseSource, "renew", renew)

    def compute(x):
        wait_for(lambda: held.is_set() and leases.long_enough(0.5) > 0.5)
        return x

    assert memory.cache(compute)(1) == 1


def test_code_that_holds_the_interpreter_makes_later_leases_longer(memory, monkeypatch, caplog):
    monkeypatch.setattr(leases, "_longest_s", 0.0)

    def hold(x):
        (lease,) = leases._held.values()
        wait_for(lambda: lease.source._renewals)  # the thread that renews has begun
        ctypes.PyDLL(None).usleep(1_500_000)
        wait_for(lambda: "no lease was renewed here" in caplog.text)
        return x

    assert memory.cache(hold)(1) == 1
    assert leases.long_enough(0.5) <= 6.0

    def later(x):
        (lease,) = leases._held.values()
        return lease.lease_s

    assert memory.cache(later)(1) > 0.5
