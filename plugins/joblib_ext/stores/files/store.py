"""A store in a folder that machines share: entries, leases and house-keeping, all as files."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.stores.events import count_events
from joblib_ext.stores.files import eviction, lease, scan, takeover, trash
from joblib_ext.stores.files.entry_files import EntryFiles
from joblib_ext.stores.files.folders import make_own_folder
from joblib_ext.stores.layout import CODE_FILE
from joblib_ext.stores.leases import Lease
from joblib_ext.stores.store import CodeVersion, Found, Refusal, Slot, View


class FileStore(EntryFiles):
    """Implements `joblib_ext.stores.store.Store`; what each function promises stands there."""

    def version(self, func_id: str, namespace: str, code: str = "") -> CodeVersion:
        """The version of *func_id* that has this namespace."""
        folder = self.layout.namespace(func_id, namespace) + "/"
        return CodeVersion(func_id, namespace, folder, code)

    def versions(self, func_id: str) -> list[CodeVersion]:
        """All versions of *func_id* that have a folder."""
        with contextlib.suppress(OSError):
            names = os.listdir(self.layout.function(func_id))  # noqa: PTH208  # names
            return [self.version(func_id, name) for name in names]
        return []

    def has_function(self, func_id: str) -> bool:
        """Whether any version of *func_id* has a folder."""
        return os.path.isdir(self.layout.function(func_id))  # noqa: PTH112  # a text

    def acquire(self, slot: Slot) -> Lease | Refusal:
        """A lease on *slot*, by a link that fails where the name is taken."""
        return lease.acquire(self, slot)

    def resume(self, slot: Slot, record: LeaseRecord) -> Lease | None:
        """This process's own lease whose acquisition it was not told of."""
        return lease.resume(self, slot, record)

    def has_failed(self, slot: Slot, record: LeaseRecord, view: View) -> bool:
        """Whether the lease *record* ended without a result: then it stands under another name."""
        if isinstance(view, LeaseRecord) and view.token == record.token:
            return False
        return os.path.lexists(lease.ended_name(slot.path, record))

    def take_over(
        self, slot: Slot, record: LeaseRecord, is_dead: Callable[[LeaseRecord], bool]
    ) -> Lease | Refusal:
        """A lease in place of a dead owner's, under a takeover lock."""
        return takeover.take_over(self, slot, record, is_dead)

    def walk(self) -> Iterator[Found]:
        """Files in the folders of versions, by one ``stat`` each."""
        for space in scan.namespaces(self.layout):
            for shard in scan.subfolders(space.path):
                with contextlib.suppress(OSError), os.scandir(f"{space.path}/{shard}") as entries:
                    for entry in entries:
                        with contextlib.suppress(OSError):
                            info = entry.stat(follow_symlinks=False)
                            times = max(info.st_atime, info.st_mtime), info.st_mtime
                            yield Found(entry.path, space.folder, space.name, info.st_size, *times)

    def note_of(self, version: CodeVersion) -> bytes | None:
        """The file that says what a version is."""
        with contextlib.suppress(OSError):
            return Path(version.folder, CODE_FILE).read_bytes()
        return None

    def claim(self, name: str) -> bool:
        """Leans on O_EXCL creation."""
        mine = f"{self.layout.claims}/{name}"
        try:
            make_own_folder(self.layout.claims, self.group)
            os.close(os.open(mine, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError:
            return False
        for path in self.names_in(self.layout.claims):
            if path != mine:
                self.remove(path)
        return True

    def names_in(self, folder: str) -> Sequence[str]:
        """Paths of the files and folders in *folder*."""
        with contextlib.suppress(OSError):
            return [f"{folder}/{name}" for name in os.listdir(folder)]  # noqa: PTH208  # names
        return []

    def events_so_far(self) -> Counter[str]:
        """What stands in the files of all processes."""
        lines: list[str] = []
        for path in self.names_in(self.layout.events):
            with contextlib.suppress(OSError):
                lines += Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
        return count_events(lines)

    def list(self, kind: type[Any]) -> list[Any]:
        """All entries, by one ``stat`` each."""
        return scan.items(self.layout, kind)

    def shrink(
        self,
        bytes_limit: int | str | None,
        items_limit: int | None,
        age_limit: dt.timedelta | None,
    ) -> int:
        """Remove the entries that were not used for longest; see `eviction`."""
        return eviction.enforce(self, bytes_limit, items_limit, age_limit)

    def clear(self, version: CodeVersion | None = None, func_id: str = "") -> None:
        """Remove entries by one rename; their files go in the background."""
        folder = self.layout.function(func_id) if func_id else self.layout.items
        trash.clear(self, version.folder[:-1] if version is not None else folder)
