"""A store in a folder that machines share: entries, leases and house-keeping, all as files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.stores.files import eviction, lease, scan, takeover, trash
from joblib_ext.stores.files.entry_files import EntryFiles
from joblib_ext.stores.files.folders import make_own_folder
from joblib_ext.stores.store import Found, Slot, View


class FileStore(EntryFiles):
    """A store in a folder; see `BaseStore` for what its functions promise."""

    acquire = lease.acquire
    resume = lease.resume
    take_over = takeover.take_over
    shrink = eviction.enforce

    def has_failed(self, slot: Slot, record: LeaseRecord, view: View) -> bool:
        """Whether the lease *record* ended without a result: then it stands under another name."""
        if isinstance(view, LeaseRecord) and view.token == record.token:
            return False
        return os.path.lexists(lease.ended_name(slot.path, record))

    def names_in(self, folder: str) -> list[str]:
        """Names of the files and folders in *folder*."""
        with contextlib.suppress(OSError):
            return os.listdir(folder)  # noqa: PTH208  # names are all that is needed
        return []

    def read(self, path: str) -> bytes | None:
        """The bytes of a file."""
        with contextlib.suppress(OSError):
            return Path(path).read_bytes()
        return None

    def create(self, path: str) -> bool:
        """Leans on O_EXCL creation."""
        try:
            make_own_folder(path.rpartition("/")[0], self.group)
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except OSError:
            return False
        return True

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

    def list(self, kind: type[Any]) -> Any:
        """All entries as tuples of *kind*, by one ``stat`` each."""
        return scan.items(self.layout, kind)

    def clear(self, folder: str) -> None:
        """Remove what stands below *folder*: by one rename, and its files in the background.

        Raises:
            OSError: some is still there; to say nothing would serve what was cleared.
        """
        trash.clear(self, folder.rstrip("/"))
