"""Dead leases: one process takes over, however many judge the owner dead, and whoever dies at it."""

import dataclasses
import errno
import os
import subprocess
import sys
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from joblib import Memory
from tests.faults.nodes import need_fuse, shares, wait_for

import joblib_ext  # noqa: F401  # registers the backend
from joblib_ext.entries.lease_record import LeaseRecord, own_record
from joblib_ext.maintenance.find import find_store
from joblib_ext.maintenance.garbage import collect_garbage
from joblib_ext.stores import leases
from joblib_ext.stores.files import takeover as _takeover
from joblib_ext.stores.files.store import FileStore

PATIENCE_S = 60


def dead_record():
    """The lease of a process of this machine that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    record = own_record(5.0)
    return dataclasses.replace(record, renewals=3, pid=process.pid, start=1)


class Processes:
    """One store under several names: its users are processes of their own to each other."""

    def __init__(self, base, function):
        self.base, self.function = base, function
        self.place = base / "store"
        self.place.mkdir()

    def cached(self, name):
        where = self.base / name
        where.symlink_to(self.place, target_is_directory=True)
        options = {"lease_s": 0.5}
        memory = Memory(str(where), backend="shared", verbose=0, backend_options=options)
        return memory.cache(self.function)

    def leave_dead_lease(self):
        """A dead owner's lease where the entry of the one call so far was; its path and record."""
        (path,) = [p for p in self.place.rglob("items/*/*/*/*") if p.is_file()]
        path.unlink()
        record = dead_record()
        path.write_bytes(record.pack())
        return path, record


class Slow:
    """Stops the thread "slow" with its rename of the lease, and starts "third" in the gap."""

    STEPS = (
        "slow moves",
        "slow may move",
        "third may start",
        "fast settled",
        "slow settled",
        "third settled",
        "all settled",
    )

    def __init__(self, monkeypatch):
        self.calls = []
        self.events = {name: threading.Event() for name in self.STEPS}
        self.looks = Counter()
        rename, link, look = os.rename, os.link, FileStore.look

        def slow_rename(source, target, **more):
            if self.me == "slow" and "released" in Path(target).name:
                self.events["slow moves"].set()
                self.wait("slow may move")
            return rename(source, target, **more)

        def slow_link(source, target, **more):
            if self.me == "slow" and "released" in Path(source).name:
                self.events["third may start"].set()
                self.wait("third settled")
            return link(source, target, **more)

        def watched_look(store, slot):
            found = look(store, slot)
            self.looks[self.me] += 1
            if self.looks[self.me] > 3 and self.me in ("fast", "slow", "third"):
                self.settle()  # it waits
            return found

        monkeypatch.setattr(os, "rename", slow_rename)
        monkeypatch.setattr(os, "link", slow_link)
        monkeypatch.setattr(FileStore, "look", watched_look)

    @property
    def me(self):
        return threading.current_thread().name

    def settle(self):
        self.events[f"{self.me} settled"].set()
        if self.me == "slow":
            self.events["third may start"].set()

    def wait(self, event):
        assert self.events[event].wait(PATIENCE_S), event


def test_of_two_that_judge_one_owner_dead_one_computes(tmp_path, monkeypatch):
    """The slower goes on when the faster is done with judging, and a third comes in the gap."""
    slow = Slow(monkeypatch)

    def function(x):
        slow.calls.append(slow.me)
        if slow.me != "MainThread":
            slow.settle()
            slow.wait("all settled")
        return x

    processes = Processes(tmp_path, function)
    cached = {name: processes.cached(name) for name in ("fast", "slow", "third")}
    cached["fast"](1)
    processes.leave_dead_lease()
    slow.calls.clear()
    threads = {n: threading.Thread(target=c, args=(1,), name=n) for n, c in cached.items()}
    threads["slow"].start()
    slow.wait("slow moves")
    threads["fast"].start()
    slow.wait("fast settled")
    slow.events["slow may move"].set()
    slow.wait("third may start")
    threads["third"].start()
    slow.wait("third settled")
    slow.events["all settled"].set()
    for thread in threads.values():
        thread.join(PATIENCE_S)
    assert len(slow.calls) == 1


@pytest.fixture
def store(tmp_path):
    """A store with a dead lease on the one call that was made, and its computations."""
    calls = []

    def function(x):
        calls.append(x)
        return x

    processes = Processes(tmp_path, function)
    cached = processes.cached("one")
    cached(1)
    calls.clear()
    return processes, cached, calls


@pytest.mark.timeout(60)
def test_whoever_dies_while_taking_over_stops_nobody(store, tmp_path):
    processes, cached, calls = store
    path, record = processes.leave_dead_lease()
    path = str(tmp_path / "one" / path.relative_to(processes.place))
    Path(_takeover._name(path, record.token)).write_bytes(dead_record().pack())
    assert cached(1) == cached(1) == 1
    assert calls == [1]
    collect_garbage(find_store(tmp_path / "one"), min_age_s=0.0)
    assert not list(processes.place.rglob("takeover*"))
    assert cached(1) == 1
    assert calls == [1]


@pytest.mark.timeout(60)
def test_a_takeover_lock_of_a_living_process_is_waited_for(store, tmp_path):
    processes, cached, calls = store
    path, record = processes.leave_dead_lease()
    path = str(tmp_path / "one" / path.relative_to(processes.place))
    takeover_lock = Path(_takeover._name(path, record.token))
    living = own_record(5.0)
    takeover_lock.write_bytes(living.pack())
    assert not _takeover.remove_dead(cached.store_backend._runtime.store, path, record)
    assert LeaseRecord.parse(Path(path).read_bytes()) == record
    takeover_lock.unlink()
    assert cached(1) == 1
    assert calls == [1]


def test_threads_take_a_dead_lease_over_once(store):
    processes, cached, calls = store
    processes.leave_dead_lease()
    start = threading.Barrier(8)

    def run(_):
        start.wait()
        return cached(1)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(8))) == [1] * 8
    assert calls == [1]
    assert not list(processes.place.rglob("takeover*"))


@pytest.mark.timeout(60)
def test_a_forked_child_takes_over_where_a_thread_of_its_parent_was_at_it(store):
    processes, cached, _ = store
    path, _ = processes.leave_dead_lease()
    path = str(Path(cached.store_backend.location, path.relative_to(processes.place / "joblib")))
    record = LeaseRecord.parse(Path(path).read_bytes())
    with _takeover._locked(cached.store_backend._runtime.store, path, record, bool) as refusal:
        assert refusal is None
        Path(_takeover._name(path, record.token)).unlink()
        child = os.fork()
        if child == 0:
            os._exit(0 if cached(1) == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.needs_fuse
@pytest.mark.timeout(60)
def test_a_dead_lease_on_a_read_only_mount_is_not_waited_for(tmp_path):
    need_fuse()
    calls = []

    def function(x):
        calls.append(x)
        return x

    with shares("fuse", tmp_path, 1) as (share,), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Memory(str(share.path), backend="shared", verbose=0).cache(function)(1)
        (path,) = [p for p in share.path.rglob("items/*/*/*/*") if p.is_file()]
        path.unlink()
        path.write_bytes(dead_record().pack())
        operations = ["write", "create", "mkdir", "link", "rename", "unlink"]
        share.inject(fail=[{"operations": operations, "errno": errno.EROFS}])
        assert Memory(str(share.path), backend="shared", verbose=0).cache(function)(1) == 1
    assert calls == [1, 1]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("function", ["open", "link"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_a_dead_lease_where_nothing_can_be_made_is_not_waited_for(
    store, tmp_path, monkeypatch, function, code
):
    """A store whose disk or server fails is used without leases, as where there is none."""
    processes, _, _ = store
    processes.leave_dead_lease()
    other = processes.cached("other")
    real = getattr(os, function)

    def fail(path, *args, **more):
        if function == "open" and not args[0] & os.O_CREAT:
            return real(path, *args, **more)
        raise OSError(code, os.strerror(code), path)

    monkeypatch.setattr(os, function, fail)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert other(1) == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("at", ["lock", "lease", "drop"])
def test_an_interrupt_while_taking_over_leaves_nothing_that_others_wait_for(store, monkeypatch, at):
    """Ctrl-C is heard when a system call returns: what that has made has to go again."""
    processes, cached, calls = store
    processes.leave_dead_lease()
    name = "unlink" if at == "drop" else "link"
    real = getattr(os, name)

    def interrupted(*args, **more):
        real(*args, **more)
        is_takeover_lock = Path(args[-1]).name.startswith("takeover.")
        if is_takeover_lock == (at != "lease"):
            monkeypatch.setattr(os, name, real)
            raise KeyboardInterrupt

    monkeypatch.setattr(os, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        cached(1)
    assert processes.cached("other")(1) == 1
    assert calls == [1]
    assert not list(processes.place.rglob("takeover*"))


@pytest.mark.timeout(120)
def test_a_store_that_can_no_longer_be_written_leaves_nobody_waiting(tmp_path, monkeypatch):
    """A disk is mounted read-only meanwhile: the owner, which lives, can neither publish nor go."""
    calls, is_refusing = [], threading.Event()

    def function(x):
        calls.append(x)
        if len(calls) == 1:
            is_refusing.set()
        return x

    def refusing(real):
        def call(path, *args, **more):
            is_write = real is not os_open or (args and args[0] & (os.O_CREAT | os.O_WRONLY))
            if is_refusing.is_set() and is_write:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
            return real(path, *args, **more)

        return call

    processes, os_open = Processes(tmp_path, function), os.open
    owner, other = processes.cached("owner"), processes.cached("other")
    for name in ("open", "link", "rename", "unlink", "mkdir"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [owner(1), owner(1), other(1)] == [1, 1, 1]
        assert calls == [1, 1, 1]
        is_refusing.clear()
        wait_for(lambda: not leases._unreleased)
        assert [other(1), owner(1)] == [1, 1]
    assert len(calls) == 4
