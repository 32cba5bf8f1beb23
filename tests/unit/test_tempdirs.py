"""Temporary directories: where they are made, and that only dead processes lose theirs."""

import errno
import logging
import os
import signal
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import pytest

from mlops_ext import _owners, files, tempdirs
from mlops_ext.errors import TempDirError

OWNER = """
    import sys
    from pathlib import Path
    from mlops_ext import tempdirs
    directory = tempdirs.RunDirectory.create(Path(sys.argv[1]), "run")
    (directory.make("zenml-") / "left.bin").write_bytes(b"x")
    print(directory.path, flush=True)
"""


def start(script: str, root: Path, **options) -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(script), str(root)]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options
    )


@pytest.fixture
def owner(tmp_path):
    """A process that owns a directory below tmp_path, and waits."""
    process = start(OWNER + "\n    sys.stdin.read()", tmp_path)
    path = Path(process.stdout.readline().strip())
    yield process, path
    process.kill()
    process.communicate()


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(tempdirs, "_warned", set())
    monkeypatch.setattr(tempdirs, "_open", {})
    monkeypatch.delenv("MLOPS_EXT_TEMP_DIR", raising=False)


def test_root_comes_from_argument_then_setting_then_environment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLOPS_EXT_TEMP_DIR", str(tmp_path / "env"))
    assert tempdirs.root() == tmp_path / "env"
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.mlops-ext]\ntemp_dir = "{tmp_path / "file"}"\n'
    )
    assert tempdirs.root() == tmp_path / "file"
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


def test_the_reaper_keeps_a_live_owner_and_takes_a_killed_one(owner, tmp_path):
    process, path = owner
    assert tempdirs.reap(tmp_path) == tempdirs.Reaped(live=(path,))
    assert (path / next(path.iterdir()) / "left.bin").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert tempdirs.reap(tmp_path) == tempdirs.Reaped(removed=(path,))
    assert list(tmp_path.iterdir()) == []


def test_the_next_start_cleans_up_after_kill_9(owner, tmp_path):
    process, path = owner
    process.kill()
    process.wait()
    tempdirs.for_process("next", tmp_path)
    assert not path.exists()


def test_a_stopped_owner_is_alive(owner, tmp_path):
    process, path = owner
    process.send_signal(signal.SIGSTOP)
    assert tempdirs.reap(tmp_path).live == (path,)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_keeps_its_parents_directory_alive(tmp_path):
    script = (
        OWNER
        + """
    import os, time
    if os.fork():
        os._exit(0)
    sys.stdin.read()
    """
    )
    process = start(script, tmp_path)
    path = Path(process.stdout.readline().strip())
    process.wait()
    assert tempdirs.reap(tmp_path).live == (path,)
    process.stdin.close()
    process.stdout.read()  # the child's exit closes the pipe
    process.stdout.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_remove_its_parents_directory(tmp_path):
    directory = tempdirs.for_process("a", tmp_path)
    child = os.fork()
    if child == 0:
        directory.close()
        tempdirs._close_all()
        os._exit(0)
    os.waitpid(child, 0)
    assert directory.path.is_dir()


def test_pid_reuse_is_seen_by_the_start_time(tmp_path, monkeypatch):
    monkeypatch.setattr(_owners, "lock", lambda _: None)  # as where flock does not work
    path = tempdirs.RunDirectory.create(tmp_path).path
    marker = path.with_name(path.name + ".owner")
    assert tempdirs.reap(tmp_path).live == (path,)
    text = marker.read_text()
    me = _owners.me()
    assert me.started in text
    marker.write_text(text.replace(f'"{me.started}"', '"1"'))
    assert tempdirs.reap(tmp_path).removed == (path,)


def test_an_owner_of_another_boot_on_this_disk_is_unknown_until_we_booted_later(tmp_path):
    directory = tempdirs.RunDirectory.create(tmp_path)
    os.close(directory._descriptor)
    directory._descriptor = -1
    marker, boot = directory.marker, _owners.me().boot
    if not boot:
        pytest.skip("this system has no boot id")
    marker.write_text(marker.read_text().replace(boot, "another"))
    assert tempdirs.reap(tmp_path).unknown == (directory.path,)
    if not _owners.on_local_disk(tmp_path):
        pytest.skip("not a local file system")
    before = _owners.booted_at() - 3600
    os.utime(marker, (before, before))
    assert tempdirs.reap(tmp_path).removed == (directory.path,)


def test_a_marker_that_is_a_link_is_not_followed(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "mlops-ext-x-1-ab").symlink_to(precious)
    (tmp_path / "root" / "mlops-ext-x-1-ab.owner").symlink_to(tmp_path / "elsewhere")
    assert tempdirs.reap(tmp_path / "root") == tempdirs.Reaped()
    assert precious.is_dir()


def test_a_full_disk_is_told_with_the_directory_and_its_size(tmp_path):
    with (
        pytest.raises(TempDirError, match=r"No space left.*bytes are free") as caught,
        tempdirs.full_disk(tmp_path),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.needs_namespaces
def test_the_same_pid_in_another_pid_namespace_is_another_process(tmp_path):
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c"]
    probe = subprocess.run([*command, "pass"], check=False, capture_output=True)
    if probe.returncode:
        pytest.skip("no right to unshare a pid namespace")
    script = textwrap.dedent(OWNER + "\n    sys.stdin.read()")
    inside = subprocess.Popen(
        [*command, script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    path = Path(inside.stdout.readline().strip())
    assert '"pid": 1,' in path.with_name(path.name + ".owner").read_text()
    assert tempdirs.reap(tmp_path).live == (path,)  # pid 1 of ours started at another time
    inside.stdin.close()
    inside.wait()
    inside.stdout.close()


def test_what_cannot_be_removed_is_logged_once_with_its_holder_and_left(
    tmp_path, caplog, monkeypatch
):
    busy = OSError(errno.EBUSY, "used by another process")

    def refuse(path, **_):
        return files.Removal(removed=0, left=((path / "open.bin", files.Held.BUSY, busy),))

    directory = tempdirs.RunDirectory.create(tmp_path)
    held = directory.make()
    with (held / "open.bin").open("wb"), monkeypatch.context() as patched:
        patched.setattr(tempdirs.files, "remove", refuse)
        assert not tempdirs.remove(held)
        assert not tempdirs.remove(held)
        assert f"(pid {os.getpid()}): {held / 'open.bin'}" in caplog.text
        assert len([r for r in caplog.records if r.message.startswith(f"{held} could")]) == 1
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
            return files.Removal(removed=0, left=((path, files.Held.BUSY, busy),))
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
    monkeypatch.setattr(_owners, "lock", lambda _: answers.pop(0))
    directory = tempdirs.RunDirectory.create(tmp_path)
    assert answers == []
    assert sorted(tmp_path.iterdir()) == [directory.path, directory.marker]


def test_no_free_name_at_all_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(_owners, "lock", lambda _: False)
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


@pytest.fixture
def left_behind(tmp_path, monkeypatch):
    """A directory whose owner died: its start time is not the one of the process that has its id."""
    monkeypatch.setattr(_owners, "lock", lambda _: None)
    directory = tempdirs.RunDirectory.create(tmp_path)
    text = directory.marker.read_text()
    directory.marker.write_text(text.replace(f'"{_owners.me().started}"', '"1"'))
    os.close(directory._descriptor)
    directory._descriptor = -1
    return directory


def test_two_reapers_at_once_touch_a_directory_once(left_behind, tmp_path, monkeypatch):
    """The other one removed the marker between our opening and locking it."""

    def lock_late(_descriptor):
        left_behind.marker.unlink()
        return True

    monkeypatch.setattr(_owners, "lock", lock_late)
    assert tempdirs.reap(tmp_path).removed == ()
    assert left_behind.path.is_dir()


def test_a_reaper_out_of_time_begins_nothing(left_behind, tmp_path):
    assert tempdirs.reap(tmp_path, budget_s=-1.0) == tempdirs.Reaped()
    assert tempdirs.reap(tmp_path, budget_s=600.0).removed == (left_behind.path,)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs user ids")
def test_what_another_user_left_is_left(left_behind, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: left_behind.marker.stat().st_uid + 1)
    assert tempdirs.reap(tmp_path) == tempdirs.Reaped()
    assert left_behind.path.is_dir()


@pytest.mark.skipif(not hasattr(os, "waitid"), reason="needs waitid")
def test_a_process_that_ended_and_was_not_waited_for_is_dead():
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert _owners.start_of(process.pid) is None
    assert _owners.start_of(os.getpid())


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_proc_of_another_pid_namespace_tells_no_start_time(monkeypatch):
    monkeypatch.setattr(_owners, "_link_text", lambda _: "1")
    assert _owners.start_of(os.getpid()) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_innermost_mount_says_whether_a_disk_is_local(monkeypatch):
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 0:9 / /shared rw - nfs4 server:/x rw\n"
        "3 2 8:2 / /shared/scratch rw - xfs /dev/b rw\n"
    )
    monkeypatch.setattr(_owners, "_read", lambda _: mounts)
    places = ("/elsewhere", "/shared/a", "/shared/scratch/b", "/sharedness")
    assert [_owners.on_local_disk(Path(place)) for place in places] == [True, False, True, True]
