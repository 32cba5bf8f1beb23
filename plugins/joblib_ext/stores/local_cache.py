"""The local tier: verified copies of entries on the node's own disk.

A copy is served only while the shared tier still has the very entry it was made from: its first
bytes, with the token of that writing, are read there each time. So what was cleared, evicted or
computed anew is never served; what is saved is the transfer of the value.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from joblib_ext.entries.entry import Entry, open_small
from joblib_ext.entries.large_entry import LargeEntry
from joblib_ext.stores.reader import READ, SMALL, close, open_large
from joblib_ext.stores.store import Slot, Store, View
from mlops_ext.files import publish

_SHRINK_TO = 0.8
"""Shrinking goes below the limit, so that it does not happen at each entry."""
_LOOK_EVERY = 1 / 16
"""The folder is measured after writing this part of the limit."""
_LARGEST_PART = 1 / 4
"""A larger entry would push out too much else."""


class LocalCache:
    """Looks entries up in *folder* first, and keeps copies there within a limit of bytes."""

    def __init__(self, folder: Path, limit: int, store: Store, location: str) -> None:
        name = os.path.abspath(location).encode()  # noqa: PTH100  # a text
        self._folder = folder / hashlib.sha256(name).hexdigest()[:16]
        self._limit, self._store = limit, store
        self._written = limit

    def look(self, slot: Slot) -> View:
        """Like `Store.look`, but an entry may come from the local copy of what stands there."""
        path = slot.path
        copy = self._copy_of(path)
        local = self._open_copy(slot.at(copy))
        if local is not None:
            token = self._store.token_at(path)
            if token == local.header.token:
                return local
        found = self._store.look(slot)
        if isinstance(found, (Entry, LargeEntry)):
            self._keep(copy, path, found)
        elif local is not None:
            _discard(copy)
        return found

    def _copy_of(self, path: str) -> str:
        name = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
        return f"{self._folder}/{name[:2]}/{name}"

    def _open_copy(self, copy: Slot) -> Entry | LargeEntry | None:
        """A verified local copy; a damaged one is dropped, not reported: the original is there."""
        try:
            descriptor = os.open(copy.path, READ)
        except OSError:
            return None
        try:
            data = os.read(descriptor, SMALL)
            if len(data) < SMALL:
                return open_small(data, copy.binding, self._store.key)
            return open_large(os.dup(descriptor), copy.path, copy.binding, data, self._store.key)
        except OSError:
            return None
        finally:
            close(descriptor)

    def _keep(self, copy: str, path: str, found: Entry | LargeEntry) -> None:
        size = found.header.size
        if size > self._limit * _LARGEST_PART:
            return
        with contextlib.suppress(OSError):
            data = found.data if isinstance(found, Entry) else Path(path).read_bytes()
            if self._store.token_at(path) != found.header.token:
                return
            Path(copy).parent.mkdir(parents=True, exist_ok=True)
            publish(copy, data)
            self._written += size
            if self._written > self._limit * _LOOK_EVERY:
                self._written = 0
                self._shrink()

    def _shrink(self) -> None:
        """Remove what was not used for longest, down to a part of the limit."""
        rows: list[tuple[float, int, str]] = []
        for shard in os.scandir(self._folder):
            with contextlib.suppress(OSError), os.scandir(shard.path) as entries:
                for entry in entries:
                    info = entry.stat()
                    rows.append((max(info.st_atime, info.st_mtime), info.st_size, entry.path))
        surplus = sum(size for _, size, _ in rows) - self._limit
        if surplus <= 0:
            return
        surplus += int(self._limit * (1 - _SHRINK_TO))
        for _, size, path in sorted(rows):
            if surplus <= 0:
                return
            _discard(path)
            surplus -= size


def _discard(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)  # noqa: PTH108
