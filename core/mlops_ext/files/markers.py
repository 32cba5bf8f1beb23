"""Owner markers: files beside run directories that name the owner and are locked while it lives.

In a folder where other users may rename entries, a marker says nothing about the directory that
happens to have its name. So it holds the directory's name and inode, and both have to fit before
anything is removed.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mlops_ext.codec import decode, encode
from mlops_ext.files.sweep import flags
from mlops_ext.processes import identity
from mlops_ext.processes.identity import Evidence, Liveness, ProcessIdentity

SUFFIX = ".owner"
# Bytes of a marker that are read; one has about 300.
_LONGEST = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Marker:
    """The content of a marker.

    Attributes:
        owner: the process that owns the directory.
        directory: the directory's name.
        inode: its inode; 0 until it is made.
    """

    owner: ProcessIdentity
    directory: str
    inode: int = 0

    def dump(self) -> bytes:
        """The marker as one line of JSON; no shorter than that of the same owner without inode."""
        return json.dumps(encode(self)).encode() + b"\n"

    @classmethod
    def read(cls, text: bytes) -> Marker | None:
        """The marker that `dump` wrote; None if the text is incomplete or foreign."""
        try:
            return decode(cls, json.loads(text))
        except (KeyError, TypeError, ValueError, RecursionError):
            return None


def create(path: Path) -> int | None:
    """A descriptor of the locked new marker *path*; None if a reaper has looked at it first.

    Raises:
        OSError: what the file system reported; no marker is left.
    """
    descriptor = os.open(path, flags("O_RDWR", "O_CREAT", "O_EXCL", "O_BINARY"), 0o600)
    try:
        if identity.lock(descriptor) is False:
            give_up(path, descriptor)
            return None
        write(path, descriptor, 0)
    except OSError:
        give_up(path, descriptor)
        raise
    return descriptor


def write(path: Path, descriptor: int, inode: int) -> None:
    """Write into the open marker *path* that this process owns the directory with *inode*."""
    marker = Marker(
        owner=identity.own_identity(), directory=path.name.removesuffix(SUFFIX), inode=inode
    )
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, marker.dump())


def give_up(path: Path, descriptor: int) -> None:
    """Remove our own marker *path* and close it; the lock is held until the name is gone."""
    with suppress(OSError):
        path.unlink()
    os.close(descriptor)
    with suppress(OSError):  # Windows removes no file that is open
        path.unlink()


@contextmanager
def opened(path: Path) -> Iterator[int | None]:
    """A descriptor of the marker *path*; None if it is gone, no file, or another user's.

    It is looked at before it is opened: opening a FIFO, or a file that another user has a lease on,
    would stop this process there.
    """
    how = flags("O_RDWR", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY")
    try:
        descriptor = os.open(path, how) if _is_ours(path.lstat()) else None
    except OSError:
        descriptor = None
    if descriptor is None:
        yield None
        return
    try:
        yield descriptor if _is_ours(os.fstat(descriptor)) else None
    finally:
        os.close(descriptor)


def judge(
    path: Path, descriptor: int, here: ProcessIdentity, *, local: bool, booted: float | None
) -> tuple[Liveness, int]:
    """Judge whether the owner of the open marker *path* lives; return its directory's inode too.

    If it is DEAD, the marker is locked by us. A marker that is of another directory than the one
    beside it proves nothing.
    """
    taken = identity.lock(descriptor)
    status = os.fstat(descriptor)
    if status.st_nlink == 0:  # another reaper was here, between our open and our lock
        return Liveness.ALIVE, 0
    os.lseek(descriptor, 0, os.SEEK_SET)
    marker = Marker.read(os.read(descriptor, _LONGEST))
    evidence = Evidence(
        held=None if taken is None else not taken,
        started=None if marker is None else identity.start_of(marker.owner.pid),
        local=local,
        written=status.st_mtime,
        now=time.time(),
        booted=booted,
    )
    liveness = identity.verdict(marker.owner if marker else None, here, evidence)
    if liveness is not Liveness.DEAD or marker is None:
        return liveness, 0
    beside = path.with_name(path.name.removesuffix(SUFFIX))
    is_its_own = marker.directory == beside.name
    if is_its_own and (marker.inode == 0 or inode_of(beside) in {None, marker.inode}):
        return Liveness.DEAD, marker.inode
    return Liveness.UNKNOWN, 0


def inode_of(path: Path) -> int | None:
    """The inode of *path*, not followed; None if it is gone, 0 if it is no directory."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino if stat.S_ISDIR(status.st_mode) else 0


def _is_ours(status: os.stat_result) -> bool:
    foreign = hasattr(os, "geteuid") and status.st_uid != os.geteuid()
    return stat.S_ISREG(status.st_mode) and not foreign
