"""Write files so that readers on any host see the whole content or none of it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlops_ext.files.names import temp_name
from mlops_ext.retry import retry

_BINARY = getattr(os, "O_BINARY", 0)
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY | getattr(os, "O_CLOEXEC", 0)
# After these a rename may have taken place: over a network the reply can be lost and
# the request sent again, which then meets its own result. Only the destination tells.
_AMBIGUOUS = frozenset({errno.EEXIST, errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENOTEMPTY})
# A temporary file can be reaped, or its name answered with a lost reply, by bad luck once;
# four times in a row is another fault.
_TRIES = 4

# ERROR_ACCESS_DENIED and ERROR_SHARING_VIOLATION: a reader has the target open.
_WINDOWS_OPEN = frozenset({5, 32})
# A reader of a small file is done within these.
_WINDOWS_PAUSES_S = (0.001, 0.01, 0.05, 0.2)

Buffer = bytes | bytearray | memoryview


def write_new(path: str | Path, data: Iterable[Buffer], *, sync: bool = False) -> None:
    """Create *path* with the concatenation of *data*; it must not exist.

    ``close()`` is checked: network file systems report a full disk or a lost write there. On any
    failure the partial file is removed before the error goes on.

    Args:
        path: the new file.
        data: buffers, written in turn.
        sync: write the content through to the disk before the file is closed. Without it a
            power cut may leave the file missing, or with some file systems empty.

    Raises:
        FileExistsError: *path* exists.
        OSError: what the file system reported.
    """
    descriptor = os.open(path, _CREATE, 0o666)
    try:
        try:
            for buffer in data:
                _write_all(descriptor, buffer)
            if sync:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108  # measured: a Path costs more than the call
        raise


def _write_all(descriptor: int, buffer: Buffer) -> None:
    written = os.write(descriptor, buffer)
    if written == len(buffer) and not isinstance(buffer, memoryview):
        return
    view = memoryview(buffer).cast("B")
    while written < view.nbytes:
        written += os.write(descriptor, view[written:])


def publish(target: str | Path, pieces: Sequence[Buffer]) -> None:
    """Give *target* the content *pieces*, all or nothing for every reader on any host.

    The content is written whole to a unique name beside the target, closed, and published by
    rename, which is atomic by POSIX and by NFS. A reply that the network lost is recovered: after
    an ambiguous error the destination is read, and its content decides.

    Args:
        target: the file; its directory must exist.
        pieces: the content.

    Raises:
        OSError: what the file system reported; the target is as it was.
    """
    target = Path(target)
    for attempt in range(1, _TRIES + 1):
        temp = target.with_name(temp_name(target.name))
        try:
            with contextlib.ExitStack() as if_it_fails:
                if_it_fails.callback(_discard, temp)
                write_new(temp, pieces)
                _rename(temp, target)
                if_it_fails.pop_all()
        except OSError as error:
            is_ambiguous = error.errno in _AMBIGUOUS
            if is_ambiguous and _holds(target, pieces):
                return
            if attempt == _TRIES or not is_ambiguous or not target.parent.is_dir():
                raise
        else:
            return


def _discard(temp: Path) -> None:
    with contextlib.suppress(OSError):
        temp.unlink()


def _rename(temp: Path, target: Path) -> None:
    retry(lambda: temp.replace(target), pauses=_WINDOWS_PAUSES_S, is_transient=_is_open_on_windows)


def _is_open_on_windows(error: Exception) -> bool:
    return getattr(error, "winerror", None) in _WINDOWS_OPEN


def _holds(target: Path, pieces: Sequence[Buffer]) -> bool:
    """Whether *target* has exactly this content; reads it, since attributes may be cached."""
    try:
        return target.read_bytes() == b"".join(pieces)
    except OSError:
        return False


def sync_directory(directory: str | Path) -> None:
    """Make the names in *directory* survive a crash; a no-op if directories cannot be synced.

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
