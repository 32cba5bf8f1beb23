"""A store in a folder that machines share: entries, leases and house-keeping, all as files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.stores.files import lease, scan, takeover, trash
from joblib_ext.stores.files.entry_files import EntryFiles
from joblib_ext.stores.leases import Lease
from joblib_ext.stores.store import CodeVersion, Refusal, Slot


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

    def take_over(
        self, slot: Slot, record: LeaseRecord, is_dead: Callable[[LeaseRecord], bool]
    ) -> Lease | Refusal:
        """A lease in place of a dead owner's, under a takeover lock."""
        return takeover.take_over(self, slot, record, is_dead)

    def list(self, kind: type[Any]) -> list[Any]:
        """All entries, by one ``stat`` each."""
        return scan.items(self.layout, kind)

    def clear(self, version: CodeVersion | None = None, func_id: str = "") -> None:
        """Remove entries by one rename; their files go in the background."""
        if version is not None:
            trash.move_to_trash(self, version.folder[:-1])
        else:
            trash.move_to_trash(
                self, self.layout.function(func_id) if func_id else self.layout.items
            )
