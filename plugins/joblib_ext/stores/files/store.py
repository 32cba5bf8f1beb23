"""A store in a folder that machines share: entries, leases and house-keeping, all as files."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.stores.files import eviction, lease, scan, takeover, trash
from joblib_ext.stores.files.entry_files import EntryFiles
from joblib_ext.stores.files.folders import make_own_folder
from joblib_ext.stores.files.moving import discard
from joblib_ext.stores.files.statx import fresh_mtime
from joblib_ext.stores.layout import CODE_FILE
from joblib_ext.stores.reader import read_head
from joblib_ext.stores.store import Found, Slot, View
from mlops_ext.files import TEMP_SUFFIX, liveness_of_maker, remove, temp_name, write_new
from mlops_ext.processes.identity import Liveness

_LONGEST_NOTE = 1 << 24


class FileStore(EntryFiles):
    """A store in a folder; see `BaseStore` for what its functions promise."""

    acquire = lease.acquire
    resume = lease.resume
    take_over = takeover.take_over
    remove_dead = takeover.remove_dead
    lease_at = staticmethod(lease.read_record)
    shrink = eviction.enforce
    empty = staticmethod(trash.empty)

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
        """The bytes of a file; not of a pipe or a device that somebody put there."""
        return read_head(path, _LONGEST_NOTE) or None

    def create(self, path: str) -> bool:
        """Leans on O_EXCL creation."""
        with contextlib.suppress(OSError):
            make_own_folder(path.rpartition("/")[0], self.group)
            write_new(path, [b""])
            return True
        return False

    def walk(self) -> Iterator[Found]:
        """Files in the folders of versions, by one ``stat`` each."""
        for version in scan.versions(self.layout):
            for shard in scan.subfolders(version.path):
                yield from _files_in(f"{version.path}/{shard}", version)

    def list(self, kind: type[Any]) -> Any:
        """All entries as tuples of *kind*, by one ``stat`` each."""
        return scan.items(self.layout, kind)

    def clear(self, folder: str) -> None:
        """Remove what stands below *folder*: by one rename, and its files in the background.

        Raises:
            OSError: some is still there; to say nothing would serve what was cleared.
        """
        trash.clear(self, folder.rstrip("/"))

    # -- house-keeping --------------------------------------------------------------------------

    def litter(self, min_age_s: float) -> Sequence[str]:
        """Temporary files whose writers are gone: known to be, or silent for so long.

        Ages are measured by the file server's own clock: against a file that is made for it.
        """
        layout, found, now = self.layout, [], time.time()
        probe = f"{layout.root}/{temp_name('clock')}"
        with contextlib.suppress(OSError):
            write_new(probe, [b""])
            now = fresh_mtime(probe)
        discard(probe)
        folders = [layout.root, layout.leases, *scan.shards(layout)]
        folders += [version.path for version in scan.versions(layout)]
        for path in (f"{folder}/{name}" for folder in folders for name in self.names_in(folder)):
            liveness = liveness_of_maker(path.rpartition("/")[2])
            if path.endswith(TEMP_SUFFIX) and liveness is not Liveness.ALIVE:
                with contextlib.suppress(OSError):
                    if liveness is Liveness.DEAD or fresh_mtime(path) <= now - min_age_s:
                        found.append(path)
        return found

    def prune(self) -> int:
        """Remove folders of versions that hold nothing but their note; how many there were."""
        pruned = 0
        for version in scan.versions(self.layout):
            for shard in scan.subfolders(version.path):
                with contextlib.suppress(OSError):
                    Path(version.path, shard).rmdir()
            if not scan.subfolders(version.path):
                discard(f"{version.path}/{CODE_FILE}")
                with contextlib.suppress(OSError):
                    Path(version.path).rmdir()
                    pruned += 1
                    Path(version.path).parent.rmdir()
        return pruned

    def remove_all(self, paths: Sequence[str]) -> int:
        """Remove files; how many could be."""
        return sum(remove(path).removed for path in paths)


def _files_in(folder: str, version: scan.Version) -> Iterator[Found]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                info = entry.stat(follow_symlinks=False)
                times = max(info.st_atime, info.st_mtime), info.st_mtime
                yield Found(entry.path, *version[:2], info.st_size, *times)
