import errno
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

import pytest

from mlops_ext.files import RemovalReason, classify_removal_error, empty, folder_below, remove
from mlops_ext.files import removal as removal_module


def windows_error(code):
    error = PermissionError(errno.EACCES, "as Windows reports it")
    error.winerror = code
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (windows_error(32), RemovalReason.BUSY),
        (windows_error(33), RemovalReason.BUSY),
        (windows_error(5), RemovalReason.DENIED),
        (windows_error(145), RemovalReason.NOT_EMPTY),
        (windows_error(2), None),
        (windows_error(3), None),
        (windows_error(1117), RemovalReason.DENIED),
        (OSError(errno.ENOENT, ""), None),
        (OSError(errno.ESTALE, ""), None),
        (OSError(errno.EBUSY, ""), RemovalReason.BUSY),
        (OSError(errno.ENOTEMPTY, ""), RemovalReason.NOT_EMPTY),
        (OSError(errno.EEXIST, ""), RemovalReason.NOT_EMPTY),
        (OSError(errno.EIO, ""), RemovalReason.OTHER),
        (OSError("no number"), RemovalReason.OTHER),
    ],
)
def test_errors_are_told_apart(error, reason):
    assert classify_removal_error(error) is reason


@pytest.mark.parametrize("value", [-1, float("inf"), float("nan")])
def test_patience_must_be_a_time(tmp_path, value):
    with pytest.raises(ValueError, match="patience_s"):
        remove(tmp_path / "x", patience_s=value)


def test_a_tree_is_removed_and_links_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    tree = tmp_path / "tree"
    (tree / "a" / "b").mkdir(parents=True)
    (tree / "a" / "file").touch()
    (tree / "link").symlink_to(outside)
    (tree / "dangling").symlink_to(tmp_path / "nowhere")
    removal = remove(tree)
    assert removal.complete
    assert removal.removed == 6
    assert not tree.exists()
    assert (outside / "kept").exists()


def test_a_missing_path_is_a_complete_removal_of_nothing(tmp_path):
    removal = remove(tmp_path / "missing")
    assert removal.complete
    assert removal.removed == 0


def as_nobody(code, *arguments):
    """Run code as an unprivileged user: permissions mean nothing to root."""
    drop = (
        "import os, pathlib, sys, mlops_ext.files\n"
        "if os.getuid() == 0: os.setgid(65534); os.setuid(65534)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", drop + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def world_dir():
    base = Path(tempfile.mkdtemp(prefix="mlops-ext-removal-"))
    base.chmod(0o777)
    yield base
    shutil.rmtree(base)


def test_read_only_files_and_directories_are_removed(world_dir):
    code = """
import pathlib, sys
from mlops_ext.files import remove
tree = pathlib.Path(sys.argv[1]) / "tree"
inner = tree / "sealed" / "inner"
inner.mkdir(parents=True)
(inner / "file").touch(0o400)
inner.chmod(0o000)
(tree / "sealed").chmod(0o500)
removal = remove(tree, patience_s=0)
print(removal.complete, removal.removed, tree.exists())
"""
    assert as_nobody(code, world_dir) == "True 4 False"


def test_what_may_not_be_removed_is_named_with_the_reason(world_dir):
    sealed = world_dir / "sealed"
    sealed.mkdir(mode=0o755)
    (sealed / "file").touch()
    code = """
import sys
from mlops_ext.files import remove
removal = remove(sys.argv[1], sleep=lambda _: sys.exit("waiting gives no permission"))
print(removal.complete, [(left.path.name, left.reason.value) for left in removal.left])
"""
    if os.getuid() != 0:
        pytest.skip("needs root to make a file that its reader may not remove")
    assert as_nobody(code, sealed) == "False [('file', 'denied')]"
    assert (sealed / "file").exists()


class Busy:
    """A tree whose file is busy until told otherwise: what an open file is on Windows."""

    def __init__(self, monkeypatch, path, code):
        self.path, self.code, self.held, self.tries = path, code, True, 0
        real = os.unlink

        def unlink(target, *args, **kwargs):
            if Path(target).name == self.path.name:
                self.tries += 1
                if self.held:
                    raise windows_error(self.code)
            return real(target, *args, **kwargs)

        monkeypatch.setattr(os, "unlink", unlink)


@pytest.mark.parametrize("code", [5, 32])
def test_an_open_file_is_removed_once_it_is_closed(tmp_path, monkeypatch, code):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "open").touch()
    (tree / "other").touch()
    busy = Busy(monkeypatch, tree / "open", code)
    now = [0.0]
    pauses = []

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds
        busy.held = len(pauses) < 4

    removal = remove(tree, sleep=sleep, clock=lambda: now[0])
    assert removal.complete
    assert not tree.exists()
    assert pauses == [0.01, 0.02, 0.04, 0.08]


def test_patience_ends_and_the_rest_is_named(tmp_path, monkeypatch):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "open").touch()
    Busy(monkeypatch, tree / "open", 32)
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    removal = remove(tree, sleep=sleep, clock=lambda: now[0])
    assert now[0] == pytest.approx(2.0)
    assert not removal.complete
    assert [(left.path.name, left.reason) for left in removal.left] == [
        ("open", RemovalReason.BUSY)
    ]
    assert [path.name for path in tree.iterdir()] == ["open"]


def test_an_error_that_waiting_does_not_cure_ends_at_once(tmp_path, monkeypatch):
    target = tmp_path / "file"
    target.touch()

    def broken(*_args, **_kwargs):
        raise OSError(errno.EIO, "broken disk")

    monkeypatch.setattr(os, "unlink", broken)
    removal = remove(target, sleep=lambda _: pytest.fail("must not wait"))
    assert [left.reason for left in removal.left] == [RemovalReason.OTHER]


def test_two_removals_of_one_tree_do_not_disturb_each_other(tmp_path):
    tree = tmp_path / "tree"
    for number in range(200):
        folder = tree / str(number % 10) / str(number)
        folder.mkdir(parents=True)
        (folder / "file").touch()
    start = threading.Barrier(4)
    removals = []

    def race():
        start.wait()
        removals.append(remove(tree))

    threads = [threading.Thread(target=race) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(removal.complete for removal in removals)
    assert sum(removal.removed for removal in removals) == 411
    assert not tree.exists()


@pytest.mark.skipif(shutil.which("chattr") is None, reason="chattr is not installed")
def test_an_immutable_file_is_denied(tmp_path):
    target = tmp_path / "file"
    target.touch()
    if subprocess.run(["chattr", "+i", target], capture_output=True, check=False).returncode:
        pytest.skip("this file system, or this user, cannot make a file immutable")
    try:
        removal = remove(tmp_path / "file", patience_s=0)
        assert [left.reason for left in removal.left] == [RemovalReason.DENIED]
    finally:
        subprocess.run(["chattr", "-i", target], check=True)


def test_a_tree_deeper_than_pythons_stack_is_removed(tmp_path):
    tree = folder = tmp_path / "tree"
    tree.mkdir()
    for _ in range(1200):
        folder = folder / "d"
        folder.mkdir()
    removal = remove(tree, patience_s=0)
    assert removal.complete
    assert removal.removed == 1201


def test_what_is_left_below_keeps_only_its_own_ancestors(tmp_path, monkeypatch):
    for name in ("a/open", "b/other", "c/d/deep"):
        (tmp_path / "tree" / name).parent.mkdir(parents=True)
        (tmp_path / "tree" / name).touch()
    Busy(monkeypatch, tmp_path / "tree" / "a" / "open", 32)
    removal = remove(tmp_path / "tree", patience_s=0)
    assert [left.path.name for left in removal.left] == ["open"]
    assert removal.removed == 5
    assert [p.name for p in (tmp_path / "tree").rglob("*")] == ["a", "open"]


def test_a_junction_is_removed_like_a_link_and_never_entered(tmp_path, monkeypatch):
    """On Windows before Python 3.12 only the reparse tag tells it from a directory."""
    junction = tmp_path / "tree" / "junction"
    junction.mkdir(parents=True)
    precious = junction / "precious"
    precious.touch()
    real = Path.lstat

    def lstat(path):
        if path == junction:
            return types.SimpleNamespace(st_mode=stat.S_IFDIR | 0o755, st_reparse_tag=0xA0000003)
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    monkeypatch.setattr(removal_module, "HAS_DESCRIPTORS", False)
    removal = remove(tmp_path / "tree", patience_s=0)
    assert precious.exists(), "what a junction leads to is somebody else's"
    assert [left.reason for left in removal.left] == [RemovalReason.NOT_EMPTY], (
        "rmdir was asked, not a walk"
    )


def test_pauses_double_up_to_the_longest(tmp_path, monkeypatch):
    (tmp_path / "open").touch()
    Busy(monkeypatch, tmp_path / "open", 32)
    now, pauses = [0.0], []

    def sleep(seconds):
        pauses.append(seconds)
        now[0] += seconds

    remove(tmp_path / "open", sleep=sleep, clock=lambda: now[0])
    assert pauses[:7] == [0.01 * 2**number for number in range(6)] + [0.5]
    assert pauses[7:-1] == [0.5] * len(pauses[7:-1])
    assert sum(pauses) == pytest.approx(2.0)


needs_descriptors = pytest.mark.skipif(
    not removal_module.HAS_DESCRIPTORS, reason="this system removes by path"
)


def after(monkeypatch, function, name, action):
    """Run *action* once, right after ``os.<function>`` was called for the entry *name*."""
    real, waiting = getattr(os, function), [action]

    def watched(target, *args, **kwargs):
        result = real(target, *args, **kwargs)
        if target == name and waiting:
            waiting.pop()()
        return result

    monkeypatch.setattr(os, function, watched)


@needs_descriptors
@pytest.mark.parametrize("function", ["stat", "open"])
def test_a_directory_swapped_for_a_link_leads_to_no_removal_elsewhere(
    tmp_path, monkeypatch, function
):
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    (outside / "file").touch()
    (outside / "inner" / "file").touch()
    tree = tmp_path / "tree"
    (tree / "d" / "inner").mkdir(parents=True)
    (tree / "d" / "file").touch()

    def swap():
        (tree / "d").rename(tmp_path / "aside")
        (tree / "d").symlink_to(outside)

    after(monkeypatch, function, "d", swap)
    remove(tree, patience_s=0)
    assert sorted(path.name for path in outside.rglob("*")) == ["file", "file", "inner"]


@needs_descriptors
@pytest.mark.parametrize("function", ["stat", "open"])
def test_a_directory_swapped_for_a_file_changes_no_file_elsewhere(tmp_path, monkeypatch, function):
    """The file is a hard link, as any user can make to files that he can see."""
    outside = tmp_path / "outside"
    outside.touch(0o444)
    (tmp_path / "tree" / "d").mkdir(parents=True)

    def swap():
        (tmp_path / "tree" / "d").rename(tmp_path / "aside")
        os.link(outside, tmp_path / "tree" / "d")

    after(monkeypatch, function, "d", swap)
    remove(tmp_path / "tree", patience_s=0)
    assert outside.stat().st_mode & 0o777 == 0o444
    assert remove(tmp_path / "tree", patience_s=0).complete
    assert outside.exists()


@needs_descriptors
def test_a_deep_directory_moved_out_of_the_tree_does_not_lead_out_of_it(tmp_path, monkeypatch):
    """The way back up is by "..", which then leads to a folder that is not to be removed."""
    tree = tmp_path / "tree"
    deep = tree.joinpath(*[f"d{number}" for number in range(60)])
    deep.mkdir(parents=True)
    outside = tmp_path / "outside"
    (outside / "kept").mkdir(parents=True)
    moved = tree.joinpath(*[f"d{number}" for number in range(10)])
    after(monkeypatch, "rmdir", "d59", lambda: moved.rename(outside / "moved"))
    removal = remove(tree, patience_s=0)
    assert (outside / "kept").is_dir()
    assert (outside / "moved").is_dir()
    assert [left.reason for left in removal.left] == [RemovalReason.BUSY]
    assert remove(tree).complete


@needs_descriptors
@pytest.mark.parametrize("link", ["a", "a/b", "a/b/c"])
def test_a_folder_below_another_is_reached_through_no_link(tmp_path, link):
    (tmp_path / "top" / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "top")
    before = len(list(Path("/dev/fd").iterdir()))
    for top in ("top", "link"):  # the top itself may be one
        with folder_below(tmp_path / top, str(tmp_path / top / "a" / "b" / "c")) as descriptor:
            assert os.path.samestat(os.fstat(descriptor), (tmp_path / "top/a/b/c").stat())
        with folder_below(tmp_path / top, tmp_path / top) as descriptor:
            assert os.path.samestat(os.fstat(descriptor), (tmp_path / "top").stat())
    with pytest.raises(ValueError, match="subpath"), folder_below(tmp_path / "top", tmp_path):
        pytest.fail("it is not below")
    swapped = tmp_path / "top" / link
    swapped.rename(tmp_path / "aside")
    swapped.symlink_to(tmp_path / "aside")
    with (
        pytest.raises(NotADirectoryError),
        folder_below(tmp_path / "top", tmp_path / "top/a/b/c"),
    ):
        pytest.fail("a link was followed")
    assert len(list(Path("/dev/fd").iterdir())) == before


@needs_descriptors
def test_no_descriptor_is_left_open(tmp_path):
    before = list(Path("/dev/fd").iterdir())
    tree = tmp_path / "tree"
    tree.joinpath(*"abcdef" * 20).mkdir(parents=True)
    assert remove(tree).complete
    assert len(list(Path("/dev/fd").iterdir())) == len(before)


@pytest.mark.skipif(sys.platform != "linux", reason="needs bind mounts")
def test_a_mounted_file_system_is_not_entered(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "data").touch()
    (tmp_path / "tree" / "mnt").mkdir(parents=True)
    (tmp_path / "tree" / "file").touch()
    code = """
import sys
from mlops_ext.files import remove
removal = remove(sys.argv[1] + "/tree", sleep=lambda _: sys.exit("must not wait"))
print([(left.path.name, left.reason.value) for left in removal.left])
"""
    script = 'mount --bind "$1/precious" "$1/tree/mnt" || exit 77; exec "$2" -c "$3" "$1"'
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path), sys.executable, code],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 77 or done.stderr.startswith("unshare"):
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    assert done.stdout.strip() == "[('mnt', 'mount point')]", done.stderr
    assert (tmp_path / "precious" / "data").exists()
    assert not (tmp_path / "tree" / "file").exists()


@needs_descriptors
def test_no_mode_outside_of_the_tree_is_changed(world_dir):
    """A hard link shares its mode with a file elsewhere, and the folder above is not ours."""
    code = """
import os, pathlib, sys
from mlops_ext.files import remove
base = pathlib.Path(sys.argv[1])
blob = base / "blob"
blob.touch(0o444)
(base / "tree" / "sealed").mkdir(parents=True)
os.link(blob, base / "tree" / "sealed" / "blob")
(base / "tree" / "sealed").chmod(0o555)
archive = base / "archive"
archive.mkdir()
(archive / "file").touch()
archive.chmod(0o555)
print(remove(base / "tree", patience_s=0).complete, remove(archive / "file", patience_s=0).complete)
print(*(oct(path.stat().st_mode & 0o777) for path in (blob, archive)))
"""
    assert as_nobody(code, world_dir).split() == ["True", "False", "0o444", "0o555"]


@needs_descriptors
def test_a_sealed_directory_swapped_for_a_link_makes_no_other_one_writable(world_dir):
    code = """
import os, pathlib, sys
from mlops_ext.files import remove
base = pathlib.Path(sys.argv[1])
(base / "outside").mkdir()
(base / "outside").chmod(0o500)
sealed = base / "tree" / "d"
sealed.mkdir(parents=True)
sealed.chmod(0o000)
real, waiting = os.open, ["swap"]

def watched(*args, **kwargs):
    try:
        return real(*args, **kwargs)
    except PermissionError:
        if waiting:
            waiting.pop()
            sealed.rename(sealed.with_name("aside"))
            sealed.symlink_to(base / "outside")
        raise

os.open = watched
remove(base / "tree", patience_s=0)
print(sealed.with_name("aside").exists(), oct((base / "outside").stat().st_mode & 0o777))
"""
    assert as_nobody(code, world_dir) == "True 0o500"


@needs_descriptors
def test_a_directory_that_cannot_be_changed_is_still_emptied(world_dir):
    """Another user's directory with mode 0777: its mode cannot be set, and need not be."""
    if os.getuid() != 0:
        pytest.skip("needs root to make a directory of another user")
    (world_dir / "theirs").mkdir()
    (world_dir / "theirs").chmod(0o077)
    (world_dir / "theirs" / "file").touch()
    code = """
import sys
from mlops_ext.files import remove
print(remove(sys.argv[1] + "/theirs", patience_s=0).removed)
"""
    assert as_nobody(code, world_dir) == "2"


@needs_descriptors
def test_only_the_directory_with_the_inode_is_removed(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    (tmp_path / "file").touch()
    inode = (tmp_path / "one").stat().st_ino
    for name in ("two", "file", "one"):
        remove(tmp_path / name, inode=inode)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "two"]


@pytest.mark.parametrize("by_descriptor", [True, False])
def test_a_directory_is_emptied_and_stays_but_a_link_to_one_is_left_alone(
    tmp_path, monkeypatch, by_descriptor
):
    monkeypatch.setattr(
        removal_module, "HAS_DESCRIPTORS", by_descriptor and removal_module.HAS_DESCRIPTORS
    )
    (tmp_path / "real" / "sub").mkdir(parents=True)
    (tmp_path / "real" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert empty(tmp_path / "link").removed == 0
    assert len(list((tmp_path / "real").iterdir())) == 2
    assert empty(tmp_path / "real").removed == 2
    assert list((tmp_path / "real").iterdir()) == []
    assert empty(tmp_path / "missing").complete


def test_what_cannot_be_removed_from_an_emptied_directory_is_named(tmp_path, monkeypatch):
    for name in ("open", "other"):
        (tmp_path / "real" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "real" / name).touch()
    busy = Busy(monkeypatch, tmp_path / "real" / "open", 32)
    before = len(list(Path("/dev/fd").iterdir()))
    removal = empty(tmp_path / "real", patience_s=0)
    assert removal.removed == 1
    assert [(left.path, left.reason) for left in removal.left] == [
        (tmp_path / "real" / "open", RemovalReason.BUSY)
    ]
    assert busy.tries == 1, "the patience is the caller's"
    assert len(list(Path("/dev/fd").iterdir())) == before
    (tmp_path / "file").touch()
    assert empty(tmp_path / "file").removed == 0
    assert (tmp_path / "file").exists()


@needs_descriptors
def test_a_directory_below_one_that_may_only_be_passed_through_is_emptied(world_dir):
    code = """
import pathlib, sys
from mlops_ext.files import empty
base = pathlib.Path(sys.argv[1]) / "closed"
(base / "trash").mkdir(parents=True)
(base / "trash" / "file").touch()
base.chmod(0o300)
print(empty(base / "trash").removed)
base.chmod(0o700)
"""
    assert as_nobody(code, world_dir) == "1"


@pytest.mark.parametrize("path", ["/", "..", "a/.."])
def test_what_has_no_name_of_its_own_is_refused(path):
    with pytest.raises(ValueError, match="does not name an entry"):
        remove(path)


def test_a_read_only_mark_that_other_names_share_stays(tmp_path, monkeypatch):
    """As on Windows, where the mark keeps a file from being removed, and belongs to the file."""
    (tmp_path / "blob").touch(0o444)
    (tmp_path / "tree").mkdir()
    os.link(tmp_path / "blob", tmp_path / "tree" / "blob")

    def denied(path):
        raise windows_error(5)

    monkeypatch.setattr(Path, "unlink", denied)
    monkeypatch.setattr(removal_module, "HAS_DESCRIPTORS", False)
    removal = remove(tmp_path / "tree" / "blob", patience_s=0)
    assert [left.reason for left in removal.left] == [RemovalReason.DENIED]
    assert (tmp_path / "blob").stat().st_mode & 0o777 == 0o444


def test_a_link_with_a_read_only_mark_leads_to_no_file_elsewhere(tmp_path, monkeypatch):
    """Not on every system does a link let everybody write."""
    (tmp_path / "outside").touch(0o444)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "outside")
    real = Path.lstat

    def lstat(path):
        if path == link:
            return types.SimpleNamespace(st_mode=stat.S_IFLNK | 0o444, st_nlink=1)
        return real(path)

    def denied(path):
        raise windows_error(5)

    monkeypatch.setattr(Path, "lstat", lstat)
    monkeypatch.setattr(Path, "unlink", denied)
    monkeypatch.setattr(removal_module, "HAS_DESCRIPTORS", False)
    removal = remove(link, patience_s=0)
    assert [left.reason for left in removal.left] == [RemovalReason.DENIED]
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o444
