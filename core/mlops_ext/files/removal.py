"""Removing files and trees that are open, read-only, or being removed by another process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlops_ext.files.reasons import RemovalError
from mlops_ext.files.sweep import (
    DIRECTORY,
    HAS_DESCRIPTORS,
    DescriptorSweep,
    PathSweep,
    is_link_like,
)
from mlops_ext.retry import doubling


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


def remove(
    path: str | Path,
    *,
    patience: Patience | None = None,
    inode: int | None = None,
    parent: int | None = None,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Removal:
    """Remove a file, a link, or a directory with all it holds; never raises OSError.

    Entries that are open or busy are tried again with growing pauses; directories inside *path*
    are made writable first; entries that vanish meanwhile count as removed by whoever did it.
    What still stands when patience ends is named in the answer.

    On POSIX systems nothing outside of *path* is touched, whatever another user does in it
    meanwhile: it is walked by descriptors, links are removed and never followed, a mounted file
    system is not entered, and the mode of a file is never changed. The folder above is not made
    writable. On Windows links and junctions are not followed either, but the system offers no way
    to close the moment between the look at an entry and its removal.

    Args:
        path: what to remove; a missing path is a complete removal of nothing.
        patience: how long to try, by default two seconds.
        inode: remove *path* only if it is a directory with this inode; ignored on Windows.
        parent: descriptor of the open directory that *path* is in, so that the path above it is
            not looked up; ignored on Windows.
        sleep: waits between tries.
        clock: a monotonic clock that goes with *sleep*.

    Raises:
        ValueError: *path* has no name of its own ("/", "..").
    """
    path = Path(path)
    if path.name in {"", ".", ".."}:
        raise ValueError(f"path = {str(path)!r} does not name an entry that can be removed")
    patience = patience or Patience()
    deadline = clock() + patience.total_s
    sweep: DescriptorSweep | PathSweep = DescriptorSweep() if HAS_DESCRIPTORS else PathSweep()
    for pause_s in doubling(patience.first_s, patience.longest_s):
        sweep.left.clear()
        if isinstance(sweep, DescriptorSweep):
            sweep.remove(path, parent=parent, inode=inode)
        else:
            sweep.remove(path)
        remaining = deadline - clock()
        if not sweep.left or remaining <= 0 or sweep.is_hopeless():
            break
        sleep(min(pause_s, remaining))
    return Removal(removed=sweep.removed, left=tuple(sweep.left))


def empty(directory: str | Path, *, patience: Patience | None = None) -> Removal:
    """Remove everything in *directory*, which stays; as `remove` does, entry by entry.

    A directory that is missing, or is a link, has nothing to be removed.
    """
    directory = Path(directory)
    if not HAS_DESCRIPTORS:
        if is_link_like(directory):
            return Removal(removed=0)
        names, descriptor = _names(directory), None
    else:
        try:
            descriptor = os.open(directory, DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return Removal(removed=0)
        names = _names(descriptor)
    try:
        done = [remove(directory / name, patience=patience, parent=descriptor) for name in names]
    finally:
        if descriptor is not None:
            os.close(descriptor)
    left = tuple(left for each in done for left in each.left)
    return Removal(removed=sum(each.removed for each in done), left=left)


def _names(directory: Path | int) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208  # a descriptor or a path
    except OSError:
        return []
