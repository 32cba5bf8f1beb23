"""The lost reply and the dead owner, as libraries for locks on shared folders meet them, and ours.

The other libraries are asserted to do what the documentation says of them: where an upgrade
changes that, the documentation has to follow.
"""

import errno
import os
import subprocess
import sys
import textwrap
import warnings

import pytest
from joblib import Memory
from tests.faults.nodes import need_fuse, shares

import joblib_ext  # noqa: F401  # registers the backend

pytestmark = [pytest.mark.needs_fuse, pytest.mark.slow, pytest.mark.timeout(120)]

WAIT_S = 3


@pytest.fixture
def share(tmp_path):
    need_fuse()
    with shares("fuse", tmp_path, 1) as (found,):
        yield found


def lose(share, operation):
    """Let each *operation* take place, and its repetition meet its own result."""
    share.inject(lose={"operations": [operation], "rate": 1.0, "errno": errno.EEXIST})


def test_flufl_raises_when_the_reply_to_a_link_is_lost(share):
    flufl = pytest.importorskip("flufl.lock")
    flufl.Lock(str(share.path / "without")).lock(timeout=WAIT_S)
    lose(share, "link")
    with pytest.raises(flufl.AlreadyLockedError):
        flufl.Lock(str(share.path / "lock")).lock(timeout=WAIT_S)


def test_filelocks_soft_lock_waits_for_itself_when_the_reply_to_its_creation_is_lost(share):
    filelock = pytest.importorskip("filelock")
    filelock.SoftFileLock(share.path / "without", timeout=WAIT_S).acquire()
    lose(share, "create")
    with pytest.raises(filelock.Timeout):
        filelock.SoftFileLock(share.path / "lock", timeout=WAIT_S).acquire()


@pytest.fixture
def strict():
    """The kind of lock of filelock that leaves leases of its owners."""
    filelock = pytest.importorskip("filelock")
    if not hasattr(filelock, "StrictSoftFileLock"):
        pytest.skip("this filelock has no strict lock")
    return filelock.StrictSoftFileLock


def test_filelocks_strict_lock_waits_for_itself_when_the_reply_to_a_link_is_lost(share, strict):
    strict(share.path / "without", timeout=WAIT_S).acquire()
    lose(share, "link")
    with pytest.raises(TimeoutError):
        strict(share.path / "lock", timeout=WAIT_S).acquire()
    share.inject()
    with pytest.raises(TimeoutError):
        strict(share.path / "lock", timeout=WAIT_S).acquire()


def test_filelocks_strict_lock_waits_for_a_dead_owner(share, strict):
    code = """
        import os, signal, sys
        from filelock import StrictSoftFileLock
        lock = StrictSoftFileLock(sys.argv[1] + "/lock")
        lock.acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), share.path]
    assert subprocess.run(command, check=False, timeout=30).returncode == -9
    with pytest.raises(TimeoutError):
        strict(share.path / "lock", timeout=WAIT_S).acquire()


@pytest.mark.parametrize("operation", ["link", "create"])
def test_the_shared_cache_computes_once_when_the_reply_is_lost(share, operation):
    calls = []

    def function(x):
        calls.append(x)
        return x

    lose(share, operation)
    with warnings.catch_warnings():
        warnings.simplefilter("error" if operation == "link" else "ignore")
        cached = Memory(str(share.path), backend="shared", verbose=0).cache(function)
        assert (cached(1), cached(2)) == (1, 2)
        share.inject()
        assert (cached(1), cached(2)) == (1, 2)
    assert calls[:2] == [1, 2]
    if operation == "link":
        assert calls == [1, 2]


def test_the_shared_cache_takes_over_from_a_dead_owner(share, tmp_path):
    script = tmp_path / "work.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys
            import joblib_ext
            from joblib import Memory

            def function(x):
                if "die" in sys.argv:
                    os.kill(os.getpid(), signal.SIGKILL)
                return x

            function.__module__ = "work"
            memory = Memory(sys.argv[1], backend="shared", verbose=0)
            print(memory.cache(function)(1))
            """
        )
    )
    command = [sys.executable, script, share.path]
    assert subprocess.run([*command, "die"], check=False).returncode == -9
    assert [path for path in share.path.rglob("items/*/*/*/*") if os.path.isfile(path)]  # noqa: PTH113
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=WAIT_S * 10)
    assert done.stdout == "1\n"
