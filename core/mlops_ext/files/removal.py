"""Removing files and trees that are open, read-only, or being removed by another process."""

from __future__ import annotations

import enum
import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mlops_ext.errors import MlopsExtError
from mlops_ext.retry import doubling

_WINDOWS_ERRORS = {
    2: "gone",  # ERROR_FILE_NOT_FOUND
    3: "gone",  # ERROR_PATH_NOT_FOUND
    5: "denied",  # ERROR_ACCESS_DENIED: read-only, mapped, or marked for deletion
    32: "busy",  # ERROR_SHARING_VIOLATION: open elsewhere
    33: "busy",  # ERROR_LOCK_VIOLATION
    145: "not-empty",  # ERROR_DIR_NOT_EMPTY: a deleted entry lives until its last handle closes
    170: "busy",  # ERROR_BUSY
    303: "busy",  # ERROR_DELETE_PENDING
}
"""https://learn.microsoft.com/windows/win32/debug/system-error-codes"""
_POSIX_ERRORS = {
    errno.ENOENT: "gone",
    errno.ESTALE: "gone",  # NFS: another client removed it
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EBUSY: "busy",  # NFS silly-renamed, a mount point, or an open file on some FUSE mounts
    errno.ETXTBSY: "busy",
    errno.ENOTEMPTY: "not-empty",
    errno.EEXIST: "not-empty",  # POSIX lets rmdir answer with either
}


_JUNCTION_TAG = 0xA0000003
"""IO_REPARSE_TAG_MOUNT_POINT, which `stat` names on Windows only."""


class RemovalReason(enum.Enum):
    """Why an entry is still there.

    BUSY: it is open. DENIED: permissions forbid it, or on Windows it is open without sharing.
    NOT_EMPTY: entries appear faster than they are removed, or an open one lingers. OTHER: the
    file system reported something that waiting does not cure.
    """

    BUSY = "busy"
    DENIED = "denied"
    NOT_EMPTY = "not-empty"
    OTHER = "other"


class RemovalError(MlopsExtError):
    """An entry that `remove` had to leave; collected in `Removal.left`, not raised.

    Attributes:
        path: the entry.
        reason: why it is still there.
        error: the last error that the file system reported.
    """

    def __init__(self, path: Path, reason: RemovalReason, error: OSError) -> None:
        self.path, self.reason, self.error = path, reason, error
        super().__init__(f"{path} could not be removed: {error.strerror or error}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to try.

    Attributes:
        total_s: seconds over all tries of one `remove`; 0 tries once.
        first_s: first pause between tries.
        longest_s: pauses double up to this.
    """

    total_s: float = 2.0
    """Virus scanners and indexers let go of a new file within about a second."""
    first_s: float = 0.01
    """A reader that is about to close needs no more."""
    longest_s: float = 0.5
    """So that a long wait costs two looks a second."""

    def __post_init__(self) -> None:
        """Refuse times that would never try, or never stop."""
        for name in ("total_s", "first_s", "longest_s"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise ValueError(f"Patience.{name} = {value!r} must be a number of seconds from 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """What a removal came to.

    Attributes:
        removed: number of entries that this call removed.
        left: what is still there, deepest first.
    """

    removed: int
    left: tuple[RemovalError, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing of the path is left."""
        return not self.left


def classify_removal_error(error: OSError) -> RemovalReason | None:
    """Why a removal failed, from ``winerror`` where there is one, else from ``errno``.

    None means that the entry is gone, which is what was wanted.
    """
    code = getattr(error, "winerror", None)
    kind = _WINDOWS_ERRORS.get(code) if code else None
    if kind is None:
        kind = _POSIX_ERRORS.get(error.errno or 0, "other")
    return None if kind == "gone" else RemovalReason(kind)


def remove(
    path: str | Path,
    *,
    patience: Patience | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Removal:
    """Remove a file, a link, or a directory with all it holds; never raises OSError.

    Entries that are open or busy are tried again with growing pauses; read-only entries and
    directories are made writable first; entries that vanish meanwhile count as removed by
    whoever did it. Symbolic links are removed, never followed. What still stands when patience
    ends is named in the answer.

    Args:
        path: what to remove; a missing path is a complete removal of nothing.
        patience: how long to try, by default two seconds.
        sleep: waits between tries.
        clock: a monotonic clock that goes with *sleep*.
    """
    path = Path(path)
    patience = patience or Patience()
    deadline = clock() + patience.total_s
    sweep = _Sweep()
    for pause_s in doubling(patience.first_s, patience.longest_s):
        sweep.left.clear()
        sweep.remove(path)
        remaining = deadline - clock()
        if not sweep.left or remaining <= 0 or sweep.is_hopeless():
            break
        sleep(min(pause_s, remaining))
    return Removal(removed=sweep.removed, left=tuple(sweep.left))


@dataclass(slots=True, kw_only=True)
class _Sweep:
    """One pass over a tree, and what it could not remove."""

    removed: int = 0
    left: list[RemovalError] = field(default_factory=list)

    def is_hopeless(self) -> bool:
        """Whether no entry is held by something that can pass."""
        return all(left.reason is RemovalReason.OTHER for left in self.left)

    def remove(self, path: Path) -> None:
        """Remove *path*, deepest entries first; a stack, since trees may be deeper than Python's.

        A directory comes twice: first to be listed, then, with the number of entries that were
        left before it, to be removed where none of its own was.
        """
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
                    names = self._list(entry)
                    pending.append((entry, len(self.left)))
                    pending += [(entry / name, None) for name in names]
                    continue
            except OSError as error:
                self._record(entry, error)
                continue
            self._try(entry.rmdir if is_directory else entry.unlink, entry)

    @staticmethod
    def _list(path: Path) -> list[str]:
        try:
            return os.listdir(path)  # noqa: PTH208  # names are all that is needed
        except PermissionError:
            path.chmod(stat.S_IRWXU)
            return os.listdir(path)  # noqa: PTH208  # names are all that is needed

    def _try(self, operation: Callable[[], None], path: Path) -> None:
        """Run an unlink or rmdir; where it is denied, make entry and parent writable, again."""
        try:
            try:
                operation()
            except OSError as error:
                if classify_removal_error(error) is not RemovalReason.DENIED or not _unlock(path):
                    raise
                operation()
        except OSError as error:
            self._record(path, error)
        else:
            self.removed += 1

    def _record(self, path: Path, error: OSError) -> None:
        reason = classify_removal_error(error)
        if reason is not None:
            self.left.append(RemovalError(path, reason, error))


def _is_junction(status: os.stat_result) -> bool:
    """Whether a directory is a Windows junction, which is removed like a link.

    By its tag, as ``os.path.isjunction`` came with Python 3.12.
    """
    return getattr(status, "st_reparse_tag", 0) == _JUNCTION_TAG


def _unlock(path: Path) -> bool:
    """Make *path* (Windows: its read-only bit) and its parent (POSIX) writable by the owner."""
    changed = False
    for entry, bits in ((path, stat.S_IWRITE), (path.parent, stat.S_IRWXU)):
        try:
            mode = entry.lstat().st_mode
            if not stat.S_ISLNK(mode) and mode & bits != bits:
                entry.chmod(stat.S_IMODE(mode) | bits)
                changed = True
        except OSError:
            continue
    return changed
