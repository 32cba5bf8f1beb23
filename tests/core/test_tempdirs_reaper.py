"""The reaper: only dead processes lose their directories, and who is dead is told with care."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.support.tempdirs import OWNER, start

from mlops_ext import tempdirs
from mlops_ext.processes import identity

pytestmark = pytest.mark.usefixtures("fresh_tempdirs")


@pytest.fixture
def owner(tmp_path):
    """A process that owns a directory below tmp_path, and waits."""
    process = start(OWNER + "\n    sys.stdin.read()", tmp_path)
    path = Path(process.stdout.readline().strip())
    yield process, path
    process.kill()
    process.communicate()


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


def test_pid_reuse_is_seen_by_the_start_time(tmp_path, monkeypatch):
    monkeypatch.setattr(identity, "lock", lambda _: None)  # as where flock does not work
    path = tempdirs.RunDirectory.create(tmp_path).path
    marker = path.with_name(path.name + ".owner")
    assert tempdirs.reap(tmp_path).live == (path,)
    text = marker.read_text()
    me = identity.own_identity()
    assert me.started in text
    marker.write_text(text.replace(f'"{me.started}"', '"1"'))
    assert tempdirs.reap(tmp_path).removed == (path,)


def test_an_owner_of_another_boot_on_this_disk_is_unknown_until_we_booted_later(tmp_path):
    directory = tempdirs.RunDirectory.create(tmp_path)
    os.close(directory._descriptor)
    directory._descriptor = -1
    marker, boot = directory.marker, identity.own_identity().boot
    if not boot:
        pytest.skip("this system has no boot id")
    marker.write_text(marker.read_text().replace(boot, "another"))
    assert tempdirs.reap(tmp_path).unknown == (directory.path,)
    if not identity.on_local_disk(tmp_path):
        pytest.skip("not a local file system")
    before = identity.booted_at() - 3600
    os.utime(marker, (before, before))
    assert tempdirs.reap(tmp_path).removed == (directory.path,)


def test_a_marker_that_is_a_link_is_not_followed(left_behind, tmp_path):
    """A link to the marker of a dead process, beside a directory that was never its own."""
    root = tmp_path / "root"
    (root / "mlops-ext-x-1-ab").mkdir(parents=True)
    text = left_behind.marker.read_text().replace(left_behind.path.name, "mlops-ext-x-1-ab")
    inode = (root / "mlops-ext-x-1-ab").stat().st_ino
    (tmp_path / "dead").write_text(re.sub('"inode": [0-9]+', f'"inode": {inode}', text))
    marker = root / "mlops-ext-x-1-ab.owner"
    marker.symlink_to(tmp_path / "dead")
    assert tempdirs.reap(root) == tempdirs.Reaped()
    marker.unlink()
    shutil.copyfile(tmp_path / "dead", marker)
    assert tempdirs.reap(root).removed, "as a file the same marker would have done"


def test_a_dead_marker_in_the_place_of_a_live_one_proves_nothing(left_behind, owner, tmp_path):
    """In a root without the sticky bit any user may rename it there."""
    _, live = owner
    left_behind.marker.rename(live.with_name(live.name + ".owner"))
    assert tempdirs.reap(tmp_path) == tempdirs.Reaped(unknown=(live,))
    assert next(live.iterdir()).is_dir()


def test_a_live_directory_in_the_place_of_a_dead_one_is_kept(left_behind, owner, tmp_path):
    _, live = owner
    left_behind.path.rename(tmp_path / "aside")
    live.rename(left_behind.path)
    assert left_behind.path in tempdirs.reap(tmp_path).unknown
    assert next(left_behind.path.iterdir()).is_dir()


def test_an_unfinished_marker_in_the_place_of_another_removes_nothing(left_behind, tmp_path):
    """One without an inode, whose owner died before its directory was noted."""
    text = left_behind.marker.read_text()
    left_behind.marker.write_text(re.sub('"inode": [0-9]+', '"inode": 0', text))
    empty = tempdirs.RunDirectory.create(tmp_path, "empty")
    left_behind.marker.rename(empty.marker)
    assert tempdirs.reap(tmp_path).unknown == (empty.path,)
    assert empty.path.is_dir()


def test_what_died_before_its_directory_was_noted_is_removed_only_if_empty(left_behind, tmp_path):
    text = left_behind.marker.read_text()
    left_behind.marker.write_text(re.sub('"inode": [0-9]+', '"inode": 0', text))
    (left_behind.path / "file").touch()
    assert tempdirs.reap(tmp_path).failed == (left_behind.path,)
    (left_behind.path / "file").unlink()
    assert tempdirs.reap(tmp_path).removed == (left_behind.path,)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_a_marker_is_looked_at_before_it_is_opened(tmp_path, monkeypatch):
    """Opening a FIFO, or a file that another user has a lease on, would stop this process."""
    os.mkfifo(tmp_path / "mlops-ext-a.owner")
    (tmp_path / "mlops-ext-b.owner").touch()
    opened, real = [], os.open
    monkeypatch.setattr(
        os, "open", lambda path, *a, **k: opened.append(path) or real(path, *a, **k)
    )
    monkeypatch.setattr(os, "geteuid", lambda: (tmp_path / "mlops-ext-b.owner").stat().st_uid + 1)
    assert tempdirs.reap(tmp_path) == tempdirs.Reaped()
    assert [path for path in opened if str(path).endswith(".owner")] == []


@pytest.mark.skipif(not hasattr(os, "O_NONBLOCK"), reason="needs POSIX")
def test_a_marker_is_opened_without_waiting(left_behind, tmp_path, monkeypatch):
    flags, real = [], os.open
    monkeypatch.setattr(
        os, "open", lambda path, f, *a, **k: flags.append((path, f)) or real(path, f, *a, **k)
    )
    tempdirs.reap(tmp_path)
    (found,) = [f for path, f in flags if str(path) == str(left_behind.marker)]
    assert found & os.O_NONBLOCK
    assert found & os.O_NOFOLLOW


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


@pytest.fixture
def left_behind(tmp_path, monkeypatch):
    """A directory whose owner died: its start time is not the one of the process that has its id."""
    monkeypatch.setattr(identity, "lock", lambda _: None)
    directory = tempdirs.RunDirectory.create(tmp_path)
    text = directory.marker.read_text()
    directory.marker.write_text(text.replace(f'"{identity.own_identity().started}"', '"1"'))
    os.close(directory._descriptor)
    directory._descriptor = -1
    return directory


def test_two_reapers_at_once_touch_a_directory_once(left_behind, tmp_path, monkeypatch):
    """The other one removed the marker between our opening and locking it."""

    def lock_late(_descriptor):
        left_behind.marker.unlink()
        return True

    monkeypatch.setattr(identity, "lock", lock_late)
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
        assert identity.start_of(process.pid) is None
    assert identity.start_of(os.getpid())


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_proc_of_another_pid_namespace_tells_no_start_time(monkeypatch):
    monkeypatch.setattr(identity, "_link_text", lambda _: "1")
    assert identity.start_of(os.getpid()) == ""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_innermost_mount_says_whether_a_disk_is_local(monkeypatch):
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/a rw\n"
        "2 1 0:9 / /shared rw - nfs4 server:/x rw\n"
        "3 2 8:2 / /shared/scratch rw - xfs /dev/b rw\n"
        "4 1 0:9 / /with\\040space rw - nfs4 server:/y rw\n"
    )
    monkeypatch.setattr(identity, "_read", lambda _: mounts)
    places = {
        "/elsewhere": True, "/shared/a": False, "/shared/scratch/b": True, "/sharedness": True,
        "/with space/a": False,
    }  # fmt: skip
    assert {place: identity.on_local_disk(Path(place)) for place in places} == places
