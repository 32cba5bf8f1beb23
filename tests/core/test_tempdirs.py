"""Temporary directories: where they are made, and what becomes of them."""

import errno
import logging
import os
import threading
import weakref
from pathlib import Path

import pytest
from tests.support.tempdirs import OWNER, start

from mlops_ext import files, tempdirs
from mlops_ext.errors import TempDirError
from mlops_ext.processes import identity

pytestmark = pytest.mark.usefixtures("fresh_tempdirs")


def test_root_comes_from_argument_then_environment_then_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.mlops-ext]\ntemp_dir = "{tmp_path / "file"}"\n'
    )
    assert tempdirs.root() == tmp_path / "file"
    monkeypatch.setenv("MLOPS_EXT_TEMP_DIR", str(tmp_path / "env"))
    assert tempdirs.root() == tmp_path / "env"
    assert tempdirs.root(tmp_path / "argument") == tmp_path / "argument"
    assert (tmp_path / "argument").is_dir()


def test_an_unusable_root_falls_back_with_one_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert tempdirs.root(tmp_path / "file" / "below") == Path(
                tempdirs.tempfile.gettempdir()
            )
    assert len(caplog.records) == 1
    assert str(tmp_path / "file" / "below") in caplog.text


def test_check_root_raises_where_root_falls_back(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(TempDirError, match="MLOPS_EXT_TEMP_DIR"):
        tempdirs.check_root(tmp_path / "file")


def test_one_directory_a_run_and_process(tmp_path):
    first = tempdirs.for_process("a", tmp_path)
    assert tempdirs.for_process("a", tmp_path) is first
    assert tempdirs.for_process("b", tmp_path).path != first.path
    assert first.path.parent == tmp_path
    assert first.make("p").parent == first.path
    if os.name == "posix":
        assert first.path.stat().st_mode & 0o777 == 0o700


def test_a_name_from_outside_cannot_leave_the_root(tmp_path):
    directory = tempdirs.RunDirectory.create(tmp_path, "../../etc/passwd run")
    assert directory.path.parent == tmp_path
    assert directory.close()


@pytest.mark.skipif(os.name != "posix", reason="inodes are of POSIX")
def test_closing_leaves_a_directory_that_stands_in_the_place_of_its_own(tmp_path):
    """In a root without the sticky bit another user may rename the one over the other."""
    mine = tempdirs.RunDirectory.create(tmp_path, "mine")
    other = tempdirs.RunDirectory.create(tmp_path, "other")
    (other.path / "kept").touch()
    mine.path.rename(tmp_path / "aside")
    other.path.rename(mine.path)
    mine.close()
    assert (mine.path / "kept").exists()
    assert (tmp_path / "aside").is_dir()


def test_a_directory_that_was_cleaned_away_is_made_again(tmp_path):
    first = tempdirs.for_process("a", tmp_path)
    first.close()
    assert tempdirs.for_process("a", tmp_path).make().is_dir()


def test_directories_go_at_exit(tmp_path):
    script = OWNER.replace(
        'RunDirectory.create(Path(sys.argv[1]), "run")', 'for_process("r", sys.argv[1])'
    )
    process = start(script, tmp_path)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert out.strip()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_remove_its_parents_directory(tmp_path):
    directory = tempdirs.for_process("a", tmp_path)
    child = os.fork()
    if child == 0:
        directory.close()
        tempdirs._close_all()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "it got as far as its end"
    assert directory.path.is_dir()


def test_a_full_disk_is_told_with_the_directory_and_its_size(tmp_path):
    with (
        pytest.raises(TempDirError, match=r"No space left.*bytes are free") as caught,
        tempdirs.full_disk(tmp_path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(tmp_path) in str(caught.value)


def test_what_cannot_be_removed_is_logged_once_with_its_holder_and_left(
    tmp_path, caplog, monkeypatch
):
    busy = OSError(errno.EBUSY, "used by another process")

    def refuse(path, **_):
        return files.Removal(
            removed=0, left=(files.RemovalError(path / "open.bin", files.RemovalReason.BUSY, busy),)
        )

    directory = tempdirs.RunDirectory.create(tmp_path)
    held = directory.make()
    with (held / "open.bin").open("wb"), monkeypatch.context() as patched:
        patched.setattr(tempdirs.files, "remove", refuse)
        assert not tempdirs.remove(held)
        assert not tempdirs.remove(held)
        (told,) = [r.message for r in caplog.records if r.message.startswith(f"{held} could")]
        assert "open.bin: used by another process" in told
        assert f"(pid {os.getpid()}): {held / 'open.bin'}" in told
        assert not directory.close()
    assert directory.marker.exists()
    assert tempdirs.reap(tmp_path).live == (directory.path,)  # this process lives


def test_garbage_that_holds_a_file_open_is_collected_before_the_removal_is_tried_again(
    tmp_path, monkeypatch
):
    """As on Windows, where an open file cannot be removed."""
    held = tempdirs.RunDirectory.create(tmp_path).make()

    class Cycle:
        def __init__(self):
            self.me, self.file = self, (held / "x").open("wb")

        def __del__(self):
            self.file.close()

    watched = []
    cycle = Cycle()
    watched.append(weakref.ref(cycle))
    real = files.remove

    def as_on_windows(path, **options):
        if watched[0]() is not None:
            busy = OSError(errno.EBUSY, "open")
            return files.Removal(
                removed=0, left=(files.RemovalError(path, files.RemovalReason.BUSY, busy),)
            )
        return real(path, **options)

    monkeypatch.setattr(tempdirs.files, "remove", as_on_windows)
    del cycle
    assert tempdirs.remove(held)
    assert not held.exists()


def descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("failing", ["mkdir", "write"])
def test_a_directory_that_cannot_be_made_leaves_no_marker_and_no_descriptor(
    tmp_path, monkeypatch, failing
):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(*((Path, "mkdir", full) if failing == "mkdir" else (os, "write", full)))
        with pytest.raises(TempDirError, match="No space left"):
            tempdirs.RunDirectory.create(tmp_path)
    assert descriptors() == before
    assert list(tmp_path.iterdir()) == []


def test_a_marker_that_a_reaper_saw_first_is_given_up_for_another(tmp_path, monkeypatch):
    answers = [False, False, True]
    monkeypatch.setattr(identity, "lock", lambda _: answers.pop(0))
    directory = tempdirs.RunDirectory.create(tmp_path)
    assert answers == []
    assert sorted(tmp_path.iterdir()) == [directory.path, directory.marker]


def test_no_free_name_at_all_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "lock", lambda _: False)
    with pytest.raises(TempDirError, match="no free name"):
        tempdirs.RunDirectory.create(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_was_cleaned_away_from_outside_leaves_no_marker(tmp_path):
    first = tempdirs.for_process("a", tmp_path)
    first.path.rmdir()
    second = tempdirs.for_process("a", tmp_path)
    assert sorted(tmp_path.iterdir()) == [second.path, second.marker]


def test_a_root_below_a_home_that_nobody_has_is_an_error_of_ours(monkeypatch):
    with pytest.raises(TempDirError, match="home directory"):
        tempdirs.check_root("~nobody-has-this-name/scratch")


def test_where_no_place_at_all_is_left_that_is_said(tmp_path, monkeypatch):
    def none():
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempdirs.tempfile, "gettempdir", none)
    (tmp_path / "file").touch()
    for path in (None, tmp_path / "file"):
        with pytest.raises(TempDirError, match="No usable temporary directory"):
            tempdirs.root(path)


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
def test_a_root_that_is_made_is_for_this_user_only_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        tempdirs.check_root(tmp_path / "a" / "b")
    finally:
        os.umask(before)
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX")
@pytest.mark.parametrize(("mode", "warned"), [(0o777, True), (0o1777, False), (0o755, False)])
def test_a_root_where_everybody_may_rename_is_warned_of(tmp_path, caplog, mode, warned):
    tmp_path.chmod(mode)
    assert tempdirs.root(tmp_path) == tmp_path
    assert ("chmod +t" in caplog.text) is warned


def test_threads_that_come_first_together_get_the_same_directory(tmp_path, monkeypatch):
    """Reaping and closing run finalizers, so no lock is held meanwhile."""
    both = threading.Barrier(2)
    real = tempdirs.reap

    def reap(*args, **kwargs):
        both.wait(20)
        assert not tempdirs._lock.locked()
        return real(*args, **kwargs)

    monkeypatch.setattr(tempdirs, "reap", reap)
    found = []
    threads = [
        threading.Thread(target=lambda: found.append(tempdirs.for_process("run", tmp_path)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] is found[1]
    assert sorted(tmp_path.iterdir()) == [found[0].path, found[0].marker]
