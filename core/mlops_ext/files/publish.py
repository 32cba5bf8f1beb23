"""Writing a file so that readers, on any host, see all of it or nothing."""

from __future__ import annotations

import contextlib
import enum
import errno
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

from mlops_ext.files.names import temp_name
from mlops_ext.retry import retry

_BINARY = getattr(os, "O_BINARY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY | getattr(os, "O_CLOEXEC", 0)
_AMBIGUOUS = frozenset({errno.EEXIST, errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENOTEMPTY})
"""After these a rename or link may have taken place: over a network the reply can be lost and
the request sent again, which then meets its own result. Only the destination tells."""
_TRIES = 4
"""A temporary file can be reaped, or its name answered with a lost reply, by bad luck once;
four times in a row is another fault."""

_NOT_ASKED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK})
_WINDOWS_NO_LINKS = frozenset({1, 50})
"""ERROR_INVALID_FUNCTION and ERROR_NOT_SUPPORTED: how FAT and some servers answer to a link."""
_WINDOWS_OPEN = frozenset({5, 32})
"""ERROR_ACCESS_DENIED and ERROR_SHARING_VIOLATION: a reader has the target open."""
_WINDOWS_PAUSES_S = (0.001, 0.01, 0.05, 0.2)
"""A reader of a small file is done within these."""

Buffer = bytes | bytearray | memoryview


class Durability(enum.Enum):
    """What survives a crash of the machine, not only of the process.

    NONE leaves it to the kernel: after a power cut the file may be missing, or with some file
    systems empty. FSYNC syncs the file before it is published and the directory after it.
    """

    NONE = "none"
    FSYNC = "fsync"


def write_new(
    path: str | Path,
    data: Iterable[Buffer],
    *,
    durability: Durability = Durability.NONE,
    mode: int = 0o666,
    reserve: int = 0,
) -> None:
    """Create *path* with the concatenation of *data*; it must not exist.

    ``close()`` is checked: network file systems report a full disk or a lost write there. On any
    failure the partial file is removed before the error goes on.

    Args:
        path: the new file.
        data: buffers, written in turn.
        durability: FSYNC syncs the file before it is closed.
        mode: permissions before the umask.
        reserve: bytes for which the file system is asked for room before anything is written.

    Raises:
        FileExistsError: *path* exists.
        OSError: what the file system reported.
    """
    descriptor = os.open(path, _CREATE, mode)
    try:
        try:
            if reserve:
                _reserve(descriptor, reserve)
            for buffer in data:
                _write_all(descriptor, buffer)
            if durability is Durability.FSYNC:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108  # measured: a Path costs more than the call
        raise


def _reserve(descriptor: int, size: int) -> None:
    """Ask for room; a file system that cannot be asked is written to without."""
    if sys.platform != "linux":
        return
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _NOT_ASKED:
            raise


def _write_all(descriptor: int, buffer: Buffer) -> None:
    written = os.write(descriptor, buffer)
    if written == len(buffer) and not isinstance(buffer, memoryview):
        return
    view = memoryview(buffer).cast("B")
    while written < view.nbytes:
        written += os.write(descriptor, view[written:])


def publish(
    target: str | Path,
    data: Sequence[Buffer] | Buffer,
    *,
    replace: bool = True,
    durability: Durability = Durability.NONE,
    mode: int = 0o666,
) -> bool:
    """Give *target* the content *data*, all or nothing for every reader on every host.

    The content is written whole to a unique name beside the target, closed, and published:
    by rename (atomic by POSIX and by NFS) where it may replace, by link (fails if the name is
    taken, atomic too) where it may not. Where the file system has no hard links, an exclusive
    rename is not to be had portably; then an existing target is looked for first, and the
    window between look and rename is not closed.

    A reply that the network lost is recovered: after an ambiguous error the destination is read,
    and what stands there decides.

    Args:
        target: the file; its directory must exist.
        data: the content, whole or in pieces.
        replace: whether an existing target may be replaced.
        durability: what has to survive a crash of the machine.
        mode: permissions before the umask.

    Returns:
        True where *target* now has this content; False where *replace* is False and a file with
        other content stands there. Callers that race for a name put something unique into the
        content: equal contents cannot be told apart after a lost reply.

    Raises:
        OSError: what the file system reported; the target is as it was.
    """
    target = Path(target)
    single = isinstance(data, (bytes, bytearray, memoryview))
    pieces = cast("Sequence[Buffer]", [data] if single else data)
    for attempt in range(1, _TRIES + 1):
        temp = target.with_name(temp_name(target.name))
        try:
            write_new(temp, pieces, durability=durability, mode=mode)
            done = _rename(temp, target) if replace else _link(temp, target)
        except OSError as error:
            outcome = _decide(error, temp, target, pieces, replace=replace)
            if outcome is None:
                if attempt == _TRIES or error.errno not in _AMBIGUOUS or not target.parent.is_dir():
                    raise
                continue
            done = outcome
        except BaseException:
            _discard(temp)
            raise
        if done and durability is Durability.FSYNC:
            sync_directory(target.parent)
        return done
    raise AssertionError  # pragma: no cover  # the loop returns or raises


def _rename(temp: Path, target: Path) -> bool:
    retry(lambda: temp.replace(target), pauses=_WINDOWS_PAUSES_S, is_transient=_is_open_on_windows)
    return True


def _is_open_on_windows(error: Exception) -> bool:
    return getattr(error, "winerror", None) in _WINDOWS_OPEN


def _link(temp: Path, target: Path) -> bool:
    try:
        os.link(temp, target)
    except OSError as error:
        if (
            error.errno not in _NO_LINKS
            and getattr(error, "winerror", None) not in _WINDOWS_NO_LINKS
        ):
            raise
        if os.path.lexists(target):
            _discard(temp)
            return False
        return _rename(temp, target)
    _discard(temp)
    return True


def _decide(
    error: OSError, temp: Path, target: Path, pieces: Sequence[Buffer], *, replace: bool
) -> bool | None:
    """What an error of publishing means: True done, False taken, None not done."""
    _discard(temp)
    if error.errno not in _AMBIGUOUS:
        return None
    if _holds(target, pieces):
        return True
    if not replace and error.errno == errno.EEXIST and os.path.lexists(target):
        return False
    return None


def _holds(target: Path, pieces: Sequence[Buffer]) -> bool:
    """Whether *target* has exactly this content; reads it, since attributes may be cached."""
    try:
        with target.open("rb") as file:
            for piece in pieces:
                view = memoryview(piece).cast("B")
                if file.read(view.nbytes) != view:
                    return False
            return not file.read(1)
    except OSError:
        return False


def _discard(temp: Path) -> None:
    with contextlib.suppress(OSError):
        temp.unlink()


def sync_directory(directory: str | Path) -> None:
    """Make the names in *directory* survive a crash; a no-op where directories cannot be synced.

    Windows cannot open a directory, and some file systems refuse to sync one; there the names
    are as durable as the file system makes them on its own.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
