"""Writes that are cut short or refused: all or nothing, no error to the caller, leftovers reaped."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
import warnings

import pytest
from joblib import Memory
from tests.faults.nodes import LOST, mount, need_fuse, shares, wait_for

import joblib_ext  # noqa: F401  # registers the backend

COUNTED = ("open", "write", "close", "link", "rename", "unlink", "mkdir", "makedirs")


def call(location, limit=0):
    """Call a cold function in a child, which kills itself at its *limit*-th call of the system."""
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return status
    try:
        count = 0

        def counted(name):
            real = getattr(os, name)

            def run(*args, **kwargs):
                nonlocal count
                count += 1
                if count == limit:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args, **kwargs)

            setattr(os, name, run)

        def function(x):
            return "value" * 20

        options = {"lease_s": 0.2}
        memory = Memory(str(location), backend="shared", verbose=0, backend_options=options)
        cached = memory.cache(function)
        if limit:
            for name in COUNTED:
                counted(name)
        os._exit(0 if cached(1) == "value" * 20 else 1)
    except BaseException:
        os._exit(2)


def leftovers(root):
    return sorted(
        path.name for path in root.rglob("*") if path.is_file() and path.name.endswith(".tmp")
    )


@pytest.mark.needs_fuse
@pytest.mark.parametrize(
    "kind",
    [
        "ext4",
        pytest.param("fuse", marks=pytest.mark.slow),
        pytest.param("fuse-cached", marks=pytest.mark.slow),
    ],
)
def test_a_process_killed_at_any_call_of_a_write_does_no_harm(tmp_path, kind):
    with shares(kind, tmp_path, 1) as (share,):
        limit = 0
        while True:
            limit += 1
            location = share.path / str(limit)
            status = call(location, limit)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                break
            assert os.WTERMSIG(status) == signal.SIGKILL
            assert call(location) == 0
            collect(location)
            assert leftovers(location) == [], f"killed at call {limit}"
        assert limit > 10


def collect(location):
    from joblib_ext.maintenance.find import find_store
    from joblib_ext.maintenance.garbage import collect_garbage

    root = location if location.name == "joblib" else location / "joblib"
    collect_garbage(find_store(root), min_age_s=0.0)


@pytest.fixture
def cached_on():
    """A cached function on a share, which counts its computations."""

    def make(share, **options):
        calls = []

        def function(x):
            calls.append(x)
            return {"x": x, "text": "value" * 100}

        options = {"lease_s": 0.3, **options}
        memory = Memory(str(share.path), backend="shared", verbose=0, backend_options=options)
        return memory.cache(function), calls, memory

    return make


REFUSALS = {
    "ENOSPC": {"operations": ["write", "create", "mkdir"], "errno": errno.ENOSPC},
    "ENOSPC at write": {"operations": ["write"], "errno": errno.ENOSPC},
    "ENOSPC at close": {"operations": ["flush"], "errno": errno.ENOSPC},
    "EDQUOT": {"operations": ["write"], "errno": errno.EDQUOT},
    "EROFS": {
        "operations": ["write", "create", "mkdir", "link", "rename", "unlink"],
        "errno": errno.EROFS,
    },
    "EACCES": {"operations": ["create", "mkdir", "link", "rename"], "errno": errno.EACCES},
    "EIO at write": {"operations": ["write"], "errno": errno.EIO},
    "EIO at rename": {"operations": ["rename"], "errno": errno.EIO},
    "EIO at link": {"operations": ["link"], "errno": errno.EIO},
    "EIO at open": {"operations": ["open"], "errno": errno.EIO},
    "EIO at read": {"operations": ["read"], "errno": errno.EIO},
    "ESTALE at open": {"operations": ["open"], "errno": errno.ESTALE},
    "ESTALE at read": {"operations": ["read"], "errno": errno.ESTALE},
    "no links": {"operations": ["link"], "errno": errno.EPERM},
}


@pytest.mark.needs_fuse
@pytest.mark.integration
@pytest.mark.parametrize("seconds", [pytest.param(0, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_what_the_file_system_refuses_never_reaches_the_caller(
    tmp_path, cached_on, refusal, seconds
):
    need_fuse()
    (tmp_path / "backing").mkdir()
    with (
        mount(tmp_path / "backing", tmp_path / "mount", seconds) as share,
        warnings.catch_warnings(record=True) as caught,
    ):
        warnings.simplefilter("always")
        cached, _, memory = cached_on(share)
        assert cached(0)["x"] == 0
        share.inject(fail=[REFUSALS[refusal]])
        for _ in range(2):
            for x in (0, 1):
                assert cached(x)["x"] == x
        assert cached.call_and_shelve(5).get()["x"] == 5
        memory.reduce_size(items_limit=100)
        with contextlib.suppress(OSError):  # as with joblib: what stays would be a wrong value
            memory.clear(warn=False)
        assert cached(3)["x"] == 3
        messages = [str(warning.message) for warning in caught]
        assert len(messages) == len(set(messages)), "a trouble is told once"
        share.inject()
        assert cached(4)["x"] == 4
        assert cached.check_call_in_cache(4)


@pytest.mark.needs_fuse
@pytest.mark.integration
@pytest.mark.parametrize("operation", LOST)
@pytest.mark.parametrize("code", [errno.EIO, errno.EEXIST, errno.ENOENT, errno.ESTALE])
@pytest.mark.parametrize("seconds", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_lost_reply_costs_nothing(tmp_path, cached_on, operation, code, seconds):
    """The operation took place, the reply says otherwise, for every second one of them."""
    need_fuse()
    (tmp_path / "backing").mkdir()
    with (
        mount(tmp_path / "backing", tmp_path / "mount", seconds) as share,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        share.inject(lose={"operations": [operation], "rate": 0.5, "errno": code})
        cached, calls, _ = cached_on(share)
        for x in range(8):
            assert cached(x)["x"] == x
        share.inject()
        for x in range(8):
            assert cached(x)["x"] == x
        assert len(calls) <= 10, "nearly all results were kept"


def test_a_result_that_fails_to_pickle_half_way_leaves_nothing(tmp_path):
    memory = Memory(str(tmp_path), backend="shared", verbose=0)
    calls = []

    class Half:
        def __reduce__(self):
            raise RuntimeError("no")

    def function(x):
        calls.append(x)
        return ["x" * 10**6, Half()]

    cached = memory.cache(function)
    for _ in range(2):
        with pytest.warns(Warning, match="cannot be stored"):
            assert len(cached(1)) == 2
    assert len(calls) == 2
    wait_for(lambda: not [path for path in tmp_path.rglob("items/*/*/*/*") if path.is_file()])


def test_a_full_disk_keeps_nothing_of_what_did_not_fit(tmp_path):
    code = """
        import resource, signal, sys, warnings
        warnings.simplefilter("error")
        import joblib_ext
        from joblib import Memory
        def function(x):
            return "x" * 100_000
        function.__module__ = "work"
        cached = Memory(sys.argv[1], backend="shared", verbose=0).cache(function)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        warnings.simplefilter("ignore")
        assert len(cached(1)) == 100_000
        assert len(cached(2)) == 100_000
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code), tmp_path], check=True)
    assert [path for path in tmp_path.rglob("items/*/*/*/*") if path.is_file()] == []


@pytest.mark.needs_fuse
def test_a_read_only_mount_serves_hits_and_computes_the_rest(tmp_path):
    need_fuse()
    with shares("fuse", tmp_path, 1) as (share,), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calls = []

        def function(x):
            calls.append(x)
            return x

        cached = Memory(str(share.path), backend="shared", verbose=0).cache(function)
        cached(1)
        share.inject(fail=[REFUSALS["EROFS"]])
        cached = Memory(str(share.path), backend="shared", verbose=0).cache(function)
        assert cached(1) == 1
        with pytest.warns(Warning, match=f"cache to disk.*{os.strerror(errno.EROFS)}"):
            assert cached(2) == 2
        assert cached(2) == 2
        assert calls == [1, 2, 2]
        with pytest.raises(OSError, match="Read-only"):
            cached.clear(warn=False)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become a user who may not write")
def test_a_folder_that_may_not_be_written_costs_one_warning(tmp_path):
    code = """
        import os, sys, warnings
        import joblib_ext
        from joblib import Memory
        import joblib_ext.backend, mlops_ext.files, numpy
        __import__("tomllib" if sys.version_info >= (3, 11) else "tomli")
        os.setgid(65534); os.setuid(65534)
        calls = []
        def function(x):
            calls.append(x)
            return x
        function.__module__ = "work"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            memory = Memory(sys.argv[1], backend="shared", verbose=0)
            cached = memory.cache(function)
            assert [cached(x) for x in (1, 1, 2)] == [1, 1, 2]
            try:
                memory.clear(warn=False)
            except PermissionError:
                memory.reduce_size(items_limit=0)
            memory.reduce_size(items_limit=0)
        assert calls == [1, 1, 2]
        print(len(caught))
    """
    tmp_path.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 3


@pytest.mark.needs_fuse
@pytest.mark.integration
@pytest.mark.parametrize("seconds", [pytest.param(0, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize("operation", ["open", "read"])
@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("mapped", [False, True])
def test_an_entry_of_several_megabytes_that_fails_to_be_read(
    tmp_path, seconds, operation, code, mapped
):
    """Some fail, then all do: the value is right each time, and the entry is there afterwards."""
    np = pytest.importorskip("numpy")
    need_fuse()
    calls = []

    def function(x):
        calls.append(x)
        return np.arange(500_000) + x

    with shares("fuse" if not seconds else "fuse-cached", tmp_path, 1) as (share,):
        memory = Memory(
            str(share.path), backend="shared", verbose=0, mmap_mode="r" if mapped else None
        )
        cached = memory.cache(function)
        expected = cached(1).copy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for limit in ({"times": 1}, {"times": 4}, {"rate": 0.3}, {}):
                drop_caches(share)
                share.inject(fail=[{"operations": [operation], "errno": code, **limit}])
                for _ in range(3):
                    found = cached(1)
                    share.inject()
                    assert np.array_equal(found, expected)
                    share.inject(fail=[{"operations": [operation], "errno": code, **limit}])
                share.inject()
        before = len(calls)
        assert np.array_equal(cached(1), expected)
        assert np.array_equal(cached(1), expected)
        assert len(calls) <= before + 1


def drop_caches(share):
    """Make the client ask for the content again."""
    for path in share.path.rglob("items/*/*/*/*"):
        if path.is_file():
            os.utime(path)
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
