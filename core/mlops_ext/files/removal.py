"""Removing files and trees that are open, read-only, or being removed by another process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlops_ext.files.reasons import RemovalError
from mlops_ext.files.sweep import (
    DIRECTORY,
    HAS_DESCRIPTORS,
    PATH_ONLY,
    DescriptorSweep,
    PathSweep,
    is_link_like,
)
from mlops_ext.retry import doubling

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.5  # a reader about to close; two looks a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The outcome of a removal.

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


def remove(
    path: str | Path,
    *,
    patience_s: float = 2.0,
    inode: int | None = None,
    parent: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Removal:
    """Remove a file, a link, or a directory with all it holds; never raises OSError.

    Entries that are open or busy are tried again with growing pauses; directories inside *path*
    are made writable first; entries that vanish meanwhile count as removed by whoever did it.
    What is left when patience ends is named in the answer.

    On POSIX systems nothing outside of *path* is touched, whatever another user does in it
    meanwhile: it is walked by descriptors, links are removed and never followed, a mounted file
    system is not entered, and the mode of a file is never changed. The folder above is not made
    writable. On Windows links and junctions are not followed either, but the system offers no way
    to close the moment between the look at an entry and its removal.

    Args:
        path: what to remove; a missing path is a complete removal of nothing.
        patience_s: seconds to go on trying; virus scanners let go of a new file within about
            one. 0 tries once.
        inode: remove *path* only if it is a directory with this inode; ignored on Windows.
        parent: descriptor of the open directory that *path* is in, so that the path above it is
            not looked up; ignored on Windows.
        sleep: waits between tries.
        clock: a monotonic clock that goes with *sleep*.

    Raises:
        ValueError: *path* has no name of its own ("/", ".."), or *patience_s* is no time.
    """
    path = Path(path)
    if path.name in {"", ".", ".."}:
        raise ValueError(f"path = {str(path)!r} does not name an entry that can be removed")
    if not 0 <= patience_s < float("inf"):
        raise ValueError(f"patience_s = {patience_s!r}: expected a number of seconds, 0 or more")
    deadline = clock() + patience_s
    sweep: DescriptorSweep | PathSweep = DescriptorSweep() if HAS_DESCRIPTORS else PathSweep()
    for pause_s in doubling(_FIRST_PAUSE_S, _LONGEST_PAUSE_S):
        sweep.left.clear()
        sweep.remove(path, parent=parent, inode=inode)
        remaining = deadline - clock()
        if not sweep.left or remaining <= 0 or sweep.is_hopeless():
            break
        sleep(min(pause_s, remaining))
    return Removal(removed=sweep.removed, left=tuple(sweep.left))


@contextmanager
def folder_below(top: str | Path, folder: str | Path) -> Iterator[int | None]:
    """A descriptor of *folder*, reached from *top* through no link; None on Windows.

    Another user who may write in there can put links to anywhere in the place of folders between
    the two. *top* itself may be one: its user chose it.

    Raises:
        OSError: it is missing, or a link stands in the way.
        ValueError: *folder* is not below *top*.
    """
    names = Path(folder).relative_to(top).parts
    if not HAS_DESCRIPTORS:
        yield None
        return
    descriptor = os.open(top, DIRECTORY | PATH_ONLY)
    try:
        for name in names:
            below = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def empty(directory: str | Path, *, patience_s: float = 2.0) -> Removal:
    """Remove everything in *directory*, which stays; as `remove` does, entry by entry.

    A directory that is missing, or is a link, has nothing to be removed.
    """
    directory = Path(directory)
    try:
        with folder_below(directory.parent, directory) as parent:
            if parent is None and is_link_like(directory):
                return Removal(removed=0)
            names = os.listdir(directory if parent is None else parent)  # noqa: PTH208
            done = [remove(directory / n, patience_s=patience_s, parent=parent) for n in names]
    except OSError:  # it is missing, no directory, or may not be listed
        return Removal(removed=0)
    left = tuple(left for each in done for left in each.left)
    return Removal(removed=sum(each.removed for each in done), left=left)
