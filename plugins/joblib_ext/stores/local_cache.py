"""The local tier: verified copies of entries on the node's own disk.

A copy is served only while the shared tier still has the very entry it was made from: its first
bytes, with the token of that writing, are read there each time. So what was cleared, evicted or
computed anew is never served; what is saved is the transfer of the value.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from pathlib import Path

from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import LargeEntry
from joblib_ext.settings import SharedOptions
from joblib_ext.stores.files.moving import discard
from joblib_ext.stores.files.scan import rows_in
from joblib_ext.stores.kinds import Store
from joblib_ext.stores.limits import Limits, choose
from joblib_ext.stores.reader import read_file
from joblib_ext.stores.store import Slot, View
from mlops_ext.files import publish

# Shrinking goes below the limit, so that it does not happen at each entry.
_SHRINK_FROM, _SHRINK_TO = 0.8, 0.7
# The folder is measured before this part of the limit is written: dozens of processes may.
_LOOK_EVERY = 1 / 512
_OTHERS = 0o077 if os.name == "posix" else 0
# Entries whose last check is remembered.
_MOST_CHECKED = 10_000
# A larger entry would push out too much else.
_LARGEST_PART = 1 / 4


class LocalCache:
    """Looks entries up in *folder* first, and keeps copies there within a limit of bytes."""

    def __init__(self, folder: Path, options: SharedOptions, store: Store, location: str) -> None:
        name = location if "://" in location else os.path.abspath(location)  # noqa: PTH100  # a text
        own = folder / f"joblib-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        self._own, self._folder = own, own / hashlib.sha256(name.encode()).hexdigest()[:16]
        self._limit, self._store, self._options = options.local_tier_bytes, store, options
        self._written = self._limit
        self._checked: dict[str, tuple[bytes, float]] = {}
        self._is_safe = self._prepare()

    def look(self, slot: Slot) -> View:
        """Like `Store.look`, but an entry may come from the local copy of what stands there."""
        path = slot.path
        if not self._is_safe:
            return self._store.look(slot)
        name = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
        copy = slot.at(f"{self._folder}/{name[:2]}/{name}")
        local = self._open_copy(copy)
        if local is not None and self._is_current(path, local.header.token):
            return local
        found = self._store.look(slot)
        if isinstance(found, (Entry, LargeEntry)):
            if self._keep(copy, path, found) and self._options.mmap_mode is not None:
                return self._open_copy(copy) or found
        elif local is not None:
            discard(copy.path)
        return found

    def _prepare(self) -> bool:
        """Make this user's folder, which nobody else may look into; False if it is another's.

        In a folder that everybody can write, such as /tmp, somebody may have made it before.
        """
        try:
            self._own.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self._own.mkdir(mode=0o700)
            found = self._own.lstat()
        except OSError:
            return False
        mine = os.name != "posix" or found.st_uid == os.getuid()
        is_safe = mine and stat.S_ISDIR(found.st_mode) and not found.st_mode & _OTHERS
        if not is_safe:
            self._store.events.warn_once(
                "tier",
                f"{self._own} is not a folder that only this user can use: no local copies are"
                " kept. Remove it, or give another local_tier",
            )
        return is_safe

    def forget(self) -> None:
        """Ask again for everything: something was removed by this process."""
        self._checked.clear()

    def _is_current(self, path: str, token: bytes) -> bool:
        """Whether the writing with this *token* still stands in the store."""
        wait_s = self._options.revalidate_s
        known, since = self._checked.get(path, (b"", 0.0))
        if known == token and time.monotonic() - since < wait_s:
            return True
        if self._store.token_at(path) != token:
            return False
        if wait_s:
            if len(self._checked) >= _MOST_CHECKED:
                self._checked.clear()
            self._checked[path] = token, time.monotonic()
        return True

    def _open_copy(self, copy: Slot) -> Entry | LargeEntry | None:
        """A local copy; a damaged one is dropped, not reported: the original is there."""
        mapped = self._options.mmap_mode is not None
        try:
            found, _ = read_file(copy.path, copy.binding, self._store.key, mapped=mapped)
        except OSError:
            return None
        return found if isinstance(found, (Entry, LargeEntry)) else None

    def _keep(self, copy: Slot, path: str, found: Entry | LargeEntry) -> bool:
        size = found.header.size
        if size > self._limit * _LARGEST_PART:
            return False
        with contextlib.suppress(OSError):
            data = found.data if isinstance(found, Entry) else found.read(size, 0)
            if self._store.token_at(path) != found.header.token:
                return False
            self._written += size
            is_time = self._written > self._limit * _LOOK_EVERY
            if is_time:
                self._written = 0
                self._shrink(size)
            Path(copy.path).parent.mkdir(parents=True, exist_ok=True)
            publish(copy.path, [data])
            if is_time:
                self._shrink(0)  # others have written meanwhile
            return True
        return False

    def _shrink(self, coming: int) -> None:
        """Remove what was not used for longest, down to a part of the limit."""
        # Of all stores: the limit is the folder's.
        rows = [row for folder in self._own.glob("*/*") for row in rows_in(str(folder))]
        if sum(row.size for row in rows) + coming > self._limit * _SHRINK_FROM:
            for row in choose(rows, Limits(self._limit * _SHRINK_TO - coming)):
                discard(f"{row.folder}/{row.name}")
