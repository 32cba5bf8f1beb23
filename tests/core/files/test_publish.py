import contextlib
import errno
import os
import resource
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlops_ext.files import Durability, publish, write_new


def names(directory):
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("data", [b"", b"abc", [b"a", memoryview(b"bc")], bytearray(b"x" * 10**6)])
def test_the_target_has_the_content_and_nothing_is_left_beside_it(tmp_path, data, durability):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    assert publish(target, data, durability=durability)
    assert target.read_bytes() == (b"".join(data) if isinstance(data, list) else bytes(data))
    assert names(tmp_path) == ["target"]


def test_a_taken_name_is_kept_where_it_may_not_be_replaced(tmp_path):
    target = tmp_path / "target"
    assert publish(target, b"first", replace=False)
    assert not publish(target, b"second", replace=False)
    assert target.read_bytes() == b"first"
    assert names(tmp_path) == ["target"]


def test_of_many_that_race_for_a_name_one_wins(tmp_path):
    start = threading.Barrier(8)
    wins = []

    def race(number):
        start.wait()
        if publish(tmp_path / "target", str(number).encode(), replace=False):
            wins.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert (tmp_path / "target").read_text() == str(wins[0])
    assert names(tmp_path) == ["target"]


def test_a_missing_directory_is_reported_as_such(tmp_path):
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "missing" / "target", b"x")


def test_a_source_of_data_that_fails_leaves_nothing(tmp_path):
    def broken():
        yield b"half"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_new(tmp_path / "new", broken())
    assert names(tmp_path) == []


def test_writing_new_refuses_what_exists(tmp_path):
    (tmp_path / "there").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_new(tmp_path / "there", [b"new"])
    assert (tmp_path / "there").read_bytes() == b"old"


def test_a_full_disk_leaves_the_old_content_and_no_partial_file(tmp_path):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    code = (
        "import resource, signal, sys; from mlops_ext.files import publish\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: publish(sys.argv[1], b'x' * 5000)\n"
        "except OSError as error: sys.exit(error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], check=False)
    assert done.returncode == errno.EFBIG
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["target"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


@pytest.fixture
def losing_reply(monkeypatch):
    """Makes one call do its work and then answer with an error, as a lost network reply does."""

    def lose(name, code, *, times=1):
        real, left = getattr(os, name), [times]

        def call(*args, **kwargs):
            done = real(*args, **kwargs)
            if left[0]:
                left[0] -= 1
                raise OSError(code, os.strerror(code))
            return done

        monkeypatch.setattr(os, name, call)

    return lose


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EIO, errno.ESTALE, errno.EEXIST])
def test_a_lost_reply_to_a_rename_is_recovered(tmp_path, losing_reply, code):
    losing_reply("replace", code)
    losing_reply("rename", code)
    assert publish(tmp_path / "target", b"new")
    assert (tmp_path / "target").read_bytes() == b"new"
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("code", [errno.EEXIST, errno.EIO])
def test_a_lost_reply_to_a_link_is_recovered(tmp_path, losing_reply, code):
    losing_reply("link", code)
    assert publish(tmp_path / "target", b"new", replace=False)
    assert (tmp_path / "target").read_bytes() == b"new"
    assert names(tmp_path) == ["target"]


def test_an_error_that_stays_is_raised_and_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_args, **_kwargs):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "link", broken)
    with pytest.raises(OSError, match="broken"):
        publish(tmp_path / "target", b"new", replace=False)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "winerror"), [(errno.EPERM, None), (errno.ENOTSUP, None), (errno.EINVAL, 1)]
)
def test_without_hard_links_a_free_name_is_taken_and_a_taken_one_kept(
    tmp_path, monkeypatch, code, winerror
):
    def no_links(*_args, **_kwargs):
        error = OSError(code, "no links here")
        error.winerror = winerror
        raise error

    monkeypatch.setattr(os, "link", no_links)
    assert publish(tmp_path / "target", b"first", replace=False)
    assert not publish(tmp_path / "target", b"second", replace=False)
    assert (tmp_path / "target").read_bytes() == b"first"
    assert names(tmp_path) == ["target"]


def test_what_has_to_survive_a_crash_is_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    done = []
    real_sync, real_replace = os.fsync, Path.replace

    def fsync(descriptor):
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        done.append(f"sync {kind}")
        real_sync(descriptor)

    def replace(path, target):
        done.append("rename")
        return real_replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    publish(tmp_path / "target", b"x", durability=Durability.FSYNC)
    assert done == ["sync file", "rename", "sync directory"]
    del done[:]
    publish(tmp_path / "target", b"x", durability=Durability.NONE)
    assert done == ["rename"]


def test_a_write_in_parts_is_written_whole(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))
    write_new(tmp_path / "new", [b"0123456789", memoryview(b"abcdefgh")])
    assert (tmp_path / "new").read_bytes() == b"0123456789abcdefgh"


@pytest.mark.parametrize("other", [b"newer", b"ne", b"old"])
def test_after_a_lost_reply_another_content_is_not_taken_for_ours(tmp_path, monkeypatch, other):
    """A longer content that begins like ours, a shorter one, and a different one."""

    def taken(_temp, target):
        Path(target).write_bytes(other)
        raise FileExistsError(errno.EEXIST, "taken")

    monkeypatch.setattr(os, "link", taken)
    assert not publish(tmp_path / "target", b"new", replace=False)
    assert (tmp_path / "target").read_bytes() == other


class TestReservedRoom:
    @pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="needs posix_fallocate")
    def test_room_is_asked_for_before_anything_is_written(self, tmp_path, monkeypatch):
        order = []
        ask, write = os.posix_fallocate, os.write

        def asked(descriptor, offset, size):
            order.append(("ask", offset, size))
            ask(descriptor, offset, size)

        def written(descriptor, data):
            order.append(("write", len(data)))
            return write(descriptor, data)

        monkeypatch.setattr(os, "posix_fallocate", asked)
        monkeypatch.setattr(os, "write", written)
        write_new(tmp_path / "file", [b"abc", b"de"], reserve=5)
        assert order == [("ask", 0, 5), ("write", 3), ("write", 2)]
        assert (tmp_path / "file").read_bytes() == b"abcde"

    @pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.ENOSPC])
    def test_only_a_full_disk_stops_the_writing(self, tmp_path, monkeypatch, code):
        def refuse(*_):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
        is_full = code == errno.ENOSPC
        with pytest.raises(OSError, match="space") if is_full else contextlib.nullcontext():
            write_new(tmp_path / "file", [b"abc"], reserve=3)
        assert (tmp_path / "file").exists() is not is_full
