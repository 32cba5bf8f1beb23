import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_ext.files import publish, sync_directory, write_new


def names(directory):
    return sorted(entry.name for entry in directory.iterdir())


@pytest.mark.parametrize(
    "data", [[], [b"abc"], [b"a", memoryview(b"bc")], [bytearray(b"x" * 10**6)]]
)
def test_the_target_has_the_content_and_nothing_is_left_beside_it(tmp_path, data):
    target = tmp_path / "target"
    target.write_bytes(b"old")
    publish(target, data)
    assert target.read_bytes() == b"".join(data)
    assert names(tmp_path) == ["target"]


def test_a_missing_directory_is_reported_as_such(tmp_path):
    with pytest.raises(FileNotFoundError):
        publish(tmp_path / "missing" / "target", [b"x"])


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
        "try: publish(sys.argv[1], [b'x' * 5000])\n"
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
    publish(tmp_path / "target", [b"new"])
    assert (tmp_path / "target").read_bytes() == b"new"
    assert names(tmp_path) == ["target"]


def test_an_error_that_stays_is_raised_and_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_args, **_kwargs):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(Path, "replace", broken)
    with pytest.raises(OSError, match="broken"):
        publish(tmp_path / "target", [b"new"])
    assert names(tmp_path) == []


@pytest.mark.parametrize(("sync", "synced"), [(False, 0), (True, 1)])
def test_what_has_to_survive_a_crash_is_synced(tmp_path, monkeypatch, sync, synced):
    done, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(real(descriptor)))
    write_new(tmp_path / "new", [b"x"], sync=sync)
    assert len(done) == synced
    sync_directory(tmp_path)
    assert len(done) == synced + 1


def test_a_write_in_parts_is_written_whole(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:3]))
    write_new(tmp_path / "new", [b"0123456789", memoryview(b"abcdefgh")])
    assert (tmp_path / "new").read_bytes() == b"0123456789abcdefgh"


@pytest.mark.parametrize("other", [b"newer", b"ne", b"old"])
def test_after_a_lost_reply_another_content_is_not_taken_for_ours(tmp_path, monkeypatch, other):
    """A longer content that begins like ours, a shorter one, and a different one."""
    tries = []

    def lost(_temp, target):
        tries.append(target)
        Path(target).write_bytes(other)
        raise OSError(errno.EIO, "lost")

    monkeypatch.setattr(Path, "replace", lost)
    with pytest.raises(OSError, match="lost"):
        publish(tmp_path / "target", [b"new"])
    assert len(tries) == 4, "it tries again, as the content is not ours"
