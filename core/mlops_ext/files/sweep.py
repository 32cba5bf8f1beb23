"""One pass of removal over a tree that other users may be changing meanwhile.

`DescriptorSweep` never looks a path up twice: each directory is opened by its name in the open
directory above it, refusing links, and everything in it is removed relative to that descriptor
(``openat``, ``unlinkat``). So a directory that is swapped for a link is removed as a link. It does
not enter a mount point, and changes no mode but that of directories inside the tree.

`PathSweep` is for systems without these calls (Windows): it never enters a link or a junction that
it sees, but the window between the look and the removal is open there.
"""

from __future__ import annotations

import errno
import functools
import operator
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlops_ext.files.reasons import (
    RemovalError,
    RemovalReason,
    classify_removal_error,
)

HAS_DESCRIPTORS = (
    {os.open, os.stat, os.unlink, os.rmdir} <= os.supports_dir_fd
    and os.listdir in os.supports_fd
    and hasattr(os, "O_NOFOLLOW")
)

# IO_REPARSE_TAG_MOUNT_POINT, which `stat` names on Windows only.
_JUNCTION_TAG = 0xA0000003
# Directories of one branch held open: enough for nearly every tree, few of a process's 1,024.
_OPEN_LEVELS = 32


def flags(*names: str) -> int:
    """The flags of `os.open` called *names*, those that this system has."""
    return functools.reduce(operator.or_, (getattr(os, name, 0) for name in names))


DIRECTORY = flags("O_RDONLY", "O_DIRECTORY", "O_CLOEXEC", "O_NONBLOCK")
# Opens a directory that may be searched, but not listed; Linux only.
PATH_ONLY = flags("O_PATH")


@dataclass(slots=True, kw_only=True)
class Sweep:
    """What one or more passes removed, and what the last one had to leave."""

    removed: int = 0
    left: list[RemovalError] = field(default_factory=list)

    def is_hopeless(self) -> bool:
        """Whether waiting cannot help with anything that is left, such as missing permissions."""
        passing = {RemovalReason.BUSY, RemovalReason.NOT_EMPTY}
        # Windows denies what is open; ``winerror`` is None on all other systems.
        return not any(e.reason in passing or getattr(e.error, "winerror", 0) for e in self.left)

    def record(self, path: Path, error: OSError) -> None:
        """Note that *path* had to be left."""
        reason = classify_removal_error(error)
        if reason is not None:
            self.left.append(RemovalError(path, reason, error))


@dataclass(slots=True, kw_only=True)
class _Level:
    """A directory on the way down.

    Attributes:
        name: its name in the directory above.
        descriptor: of the open directory; -1 while it is closed to save descriptors.
        inode: its device and inode.
        mount: its device and mount, which every directory of the tree must have.
        names: entries still to be removed.
        left: number of entries that were left before it was entered.
    """

    name: str
    descriptor: int
    inode: tuple[int, int]
    mount: tuple[int, bytes]
    names: list[str]
    left: int

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


@dataclass(slots=True, kw_only=True)
class DescriptorSweep(Sweep):
    """A pass by descriptors; see the module."""

    _levels: list[_Level] = field(default_factory=list)

    def remove(self, path: Path, *, parent: int | None, inode: int | None) -> None:
        """Remove the entry *path*, with all it holds.

        Args:
            path: the entry.
            parent: its open directory; by default the path's parent is looked up, once.
            inode: remove the entry only if it is a directory with this inode.
        """
        try:
            top = os.open(path.parent, DIRECTORY | PATH_ONLY) if parent is None else os.dup(parent)
            self._push(str(path.parent), top, [path.name])
            self._walk(inode)
        except OSError as error:
            self.record(path, error)
        finally:
            self._leave(0)

    def _walk(self, inode: int | None) -> None:
        while True:
            here = self._levels[-1]
            if here.names:
                name = here.names.pop()
                expected = inode if len(self._levels) == 1 else None
                try:
                    self._remove_or_enter(here, name, expected)
                except OSError as error:
                    self.record(self._path(name), error)
            elif len(self._levels) == 1:
                return
            else:
                self._go_up()

    def _remove_or_enter(self, here: _Level, name: str, inode: int | None) -> None:
        status = os.stat(name, dir_fd=here.descriptor, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            try:
                descriptor = self._open(here, name)
            except OSError as error:
                if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
                    raise
                descriptor = None  # swapped for a link or a file since the look
            if descriptor is not None:
                if inode is not None and os.fstat(descriptor).st_ino != inode:
                    os.close(descriptor)
                    raise OSError(errno.ESTALE, "another directory")
                self._push(name, descriptor)
                return
        if inode is None:
            os.unlink(name, dir_fd=here.descriptor)
            self.removed += 1

    def _open(self, here: _Level, name: str) -> int:
        """A descriptor of the directory *name*, which may be listed and emptied."""
        try:
            descriptor = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=here.descriptor)
        except PermissionError:
            self._unlock(here, name)
            descriptor = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=here.descriptor)
        try:
            status = os.fstat(descriptor)
            _refuse_mount_point(descriptor, status, here)
            if status.st_mode & stat.S_IRWXU != stat.S_IRWXU:
                with suppress(OSError):  # another user's: perhaps it can be emptied as it is
                    os.fchmod(descriptor, stat.S_IRWXU)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    @staticmethod
    def _unlock(here: _Level, name: str) -> None:
        """Let the owner list the directory *name*, found without following a link."""
        if not PATH_ONLY:
            os.chmod(name, stat.S_IRWXU, dir_fd=here.descriptor, follow_symlinks=False)
            return
        how = DIRECTORY | PATH_ONLY | os.O_NOFOLLOW
        descriptor = os.open(name, how, dir_fd=here.descriptor)
        try:
            _refuse_mount_point(descriptor, os.fstat(descriptor), here)
            Path(f"/proc/self/fd/{descriptor}").chmod(stat.S_IRWXU)
        finally:
            os.close(descriptor)

    def _push(self, name: str, descriptor: int, names: list[str] | None = None) -> None:
        try:
            status = os.fstat(descriptor)
            level = _Level(
                name=name,
                descriptor=descriptor,
                inode=(status.st_dev, status.st_ino),
                mount=_mount_of(descriptor, status),
                names=os.listdir(descriptor) if names is None else names,
                left=len(self.left),
            )
        except BaseException:
            os.close(descriptor)
            raise
        self._levels.append(level)
        if len(self._levels) > _OPEN_LEVELS + 1:  # the first stays open: nothing leads back to it
            self._levels[-_OPEN_LEVELS].close()

    def _go_up(self) -> None:
        """Leave the deepest directory, and remove it if nothing was left in it."""
        level, above = self._levels.pop(), self._levels[-1]
        try:
            if above.descriptor < 0:
                above.descriptor = self._open_above(level, above)
            if len(self.left) == level.left:
                os.rmdir(level.name, dir_fd=above.descriptor)
                self.removed += 1
        except OSError as error:
            self.record(self._path(level.name), error)
            if above.descriptor < 0:  # moved away meanwhile: the way back is lost
                self._leave(1)
        finally:
            level.close()

    def _leave(self, kept: int) -> None:
        while len(self._levels) > kept:
            self._levels.pop().close()

    @staticmethod
    def _open_above(level: _Level, above: _Level) -> int:
        """The directory *above* again, if it still is the one above *level*."""
        descriptor = os.open("..", DIRECTORY | os.O_NOFOLLOW, dir_fd=level.descriptor)
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != above.inode:
            os.close(descriptor)
            raise OSError(errno.EBUSY, "the directory was moved while it was emptied")
        return descriptor

    def _path(self, *names: str) -> Path:
        return Path(*(level.name for level in self._levels), *names)


def _refuse_mount_point(descriptor: int, status: os.stat_result, above: _Level) -> None:
    if _mount_of(descriptor, status) != above.mount:
        raise OSError(errno.EXDEV, "another file system is mounted here")


def _mount_of(descriptor: int, status: os.stat_result) -> tuple[int, bytes]:
    """Device and mount of an open directory; a bind mount has the device of its source.

    Without Linux's /proc the mount is empty, and only another device is told apart.
    """
    try:
        info = Path(f"/proc/self/fdinfo/{descriptor}").read_bytes()
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE}:  # told apart again with a free descriptor
            raise
        info = b""
    return status.st_dev, info.partition(b"mnt_id:")[2].split(b"\n")[0]


@dataclass(slots=True, kw_only=True)
class PathSweep(Sweep):
    """A pass by paths, for systems without `HAS_DESCRIPTORS`; see the module."""

    def remove(self, path: Path, *, parent: int | None, inode: int | None) -> None:
        """Remove *path*, deepest entries first; a stack, since trees may be deeper than Python's.

        *parent* and *inode* are ignored: such a system has neither. A directory comes twice: first
        to be listed, then, with the number of entries that were left before it, to be removed if
        none of its own was.
        """
        del parent, inode
        pending: list[tuple[Path, int | None]] = [(path, None)]
        while pending:
            entry, before = pending.pop()
            if before is not None:
                if len(self.left) == before:
                    self._try(entry.rmdir, entry)
                continue
            try:
                status = entry.lstat()
                is_directory = stat.S_ISDIR(status.st_mode)
                if is_directory and not _is_junction(status):
                    names = os.listdir(entry)  # noqa: PTH208  # names are all that is needed
                    pending.append((entry, len(self.left)))
                    pending += [(entry / name, None) for name in names]
                    continue
            except OSError as error:
                self.record(entry, error)
                continue
            self._try(entry.rmdir if is_directory else entry.unlink, entry)

    def _try(self, operation: Callable[[], None], path: Path) -> None:
        """Run an unlink or rmdir; if it is denied, take the read-only mark away, and again."""
        try:
            try:
                operation()
            except OSError as error:
                if classify_removal_error(error) is not RemovalReason.DENIED or not _unlock(path):
                    raise
                operation()
        except OSError as error:
            self.record(path, error)
        else:
            self.removed += 1


def is_link_like(path: Path) -> bool:
    """Whether *path* is a link or a junction, or cannot be looked at."""
    try:
        status = path.lstat()
    except OSError:
        return True
    return stat.S_ISLNK(status.st_mode) or _is_junction(status)


def _is_junction(status: os.stat_result) -> bool:
    """Whether a directory is a Windows junction, which is removed like a link.

    By its tag, as ``os.path.isjunction`` came with Python 3.12.
    """
    return getattr(status, "st_reparse_tag", 0) == _JUNCTION_TAG


def _unlock(path: Path) -> bool:
    """Take the read-only mark from *path*; not from a file with other names, which share it."""
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) or status.st_mode & stat.S_IWRITE:
            return False
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            return False
        path.chmod(stat.S_IMODE(status.st_mode) | stat.S_IWRITE)
    except OSError:
        return False
    return True
