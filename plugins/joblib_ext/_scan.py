"""Walking over a store: folders by ``scandir``, one ``stat`` an entry, no entry opened."""

from __future__ import annotations

import contextlib
import datetime as dt
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from joblib_ext._layout import CLAIM_MAX, Layout
from mlops_ext.files import TEMP_SUFFIX

__all__ = ["Namespace", "is_item", "items", "namespaces", "shards"]

_SHARD_DIGITS = 2


def is_item(name: str) -> bool:
    """Whether a name can be an entry's: not temporary, and not what is left of an open file.

    NFS and FUSE rename an open file that is removed to ``.nfs...`` or ``.fuse_hidden...``.
    """
    return not name.endswith(TEMP_SUFFIX) and not name.startswith(".")


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One version of one function on disk.

    Attributes:
        folder: the function's folder name.
        name: the namespace.
        path: its path.
    """

    folder: str
    name: str
    path: str


def subfolders(path: str) -> list[str]:
    """Names of the folders in *path*; [] where it is gone."""
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def namespaces(layout: Layout) -> Iterator[Namespace]:
    """All versions of all functions."""
    for folder in subfolders(layout.items):
        for name in subfolders(f"{layout.items}/{folder}"):
            yield Namespace(folder=folder, name=name, path=f"{layout.items}/{folder}/{name}")


def shards(layout: Layout) -> list[str]:
    """Paths of all folders that hold entries."""
    return [
        f"{space.path}/{name}" for space in namespaces(layout) for name in subfolders(space.path)
    ]


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Hold the cyclic collector back: it would walk over each list while it grows."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def items(layout: Layout, kind: type[Any]) -> list[Any]:
    """All entries as joblib wants them: tuples of *kind* with path, size and last access."""
    out: list[Any] = []
    when = dt.datetime.fromtimestamp
    add, make = out.append, tuple.__new__  # a named tuple's own constructor costs twice as much
    with without_collector():
        for shard in shards(layout):
            with contextlib.suppress(OSError), os.scandir(shard) as entries:
                for entry in entries:
                    name = entry.name
                    if name[0] == "." or name[-4:] == TEMP_SUFFIX:
                        continue  # as `is_item` says; a call for each costs a tenth
                    try:
                        found = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue  # somebody removed it meanwhile
                    if found.st_size >= CLAIM_MAX:
                        add(make(kind, (f"{shard}/{name}", found.st_size, when(found.st_atime))))
    return out
