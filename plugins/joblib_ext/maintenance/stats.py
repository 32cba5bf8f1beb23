"""Looking into a store from outside of a call: statistics and verification."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import CorruptEntryError, LargeEntry
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.settings import SharedOptions
from joblib_ext.stores.events import read_events
from joblib_ext.stores.files.layout import CODE_FILE, LEASE_MAX, ROOT, function_of
from joblib_ext.stores.files.scan import Namespace, is_item, namespaces, subfolders
from joblib_ext.stores.files.store import FileStore
from joblib_ext.stores.store import CodeVersion, Slot
from mlops_ext.errors import MlopsExtError
from mlops_ext.files import TEMP_SUFFIX

Progress = Callable[[int, int], object]
"""Called with the number of folders done, and of all."""


def no_progress(_done: int, _total: int) -> None:
    """Tell nobody."""


class NotAStoreError(MlopsExtError):
    """A path holds no store of the shared backend.

    Attributes:
        path: what was given.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(
            f"{path} holds no cache of the shared backend (no folder {ROOT}, here or in joblib);"
            " give the location that Memory was made with"
        )


def find_store(path: Path, *, sign_key: bytes | None = None, lease_s: float = 5.0) -> FileStore:
    """The store at *path*: the location given to ``Memory``, or the ``joblib`` folder in it.

    Raises:
        NotAStoreError: there is none.
    """
    for location in (path, path / "joblib", path.parent if path.name == ROOT else path):
        if (location / ROOT).is_dir():
            return FileStore(str(location), SharedOptions(sign_key=sign_key, lease_s=lease_s))
    raise NotAStoreError(path)


@dataclass(slots=True, kw_only=True)
class VersionStats:
    """One version of a function.

    Attributes:
        function: its name.
        namespace: its version.
        entries: number of entries.
        size: their bytes.
        last_used: latest access, in seconds since the epoch.
        used_again: entries that were read after they were written.
        ages_s: seconds since each entry was written.
    """

    function: str
    namespace: str
    entries: int = 0
    size: int = 0
    last_used: float = 0.0
    used_again: int = 0
    ages_s: list[float] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Stats:
    """What is in a store.

    Attributes:
        versions: by function and version, largest first.
        leases: leases that stand now.
        orphans: temporary files.
        corrupt: files that were moved aside.
        trash: trees on their way out.
        events: how often each rare event was noted.
    """

    versions: list[VersionStats]
    leases: int
    orphans: int
    corrupt: int
    trash: int
    events: Counter[str]

    @property
    def entries(self) -> int:
        """All entries."""
        return sum(version.entries for version in self.versions)

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return sum(version.size for version in self.versions)


def statistics(store: FileStore, progress: Progress = no_progress) -> Stats:
    """What is in *store*; one ``stat`` an entry, nothing is opened or changed."""
    layout = store.layout
    stats = Stats(
        versions=[],
        leases=0,
        orphans=0,
        corrupt=_count(layout.corrupt),
        trash=_count(layout.trash),
        events=read_events(layout.events),
    )
    now = time.time()
    spaces = list(namespaces(layout))
    for number, space in enumerate(spaces):
        version = VersionStats(function=function_of(space.folder), namespace=space.name)
        for shard in subfolders(space.path):
            _add_shard(f"{space.path}/{shard}", stats, version, now)
        if version.entries:
            stats.versions.append(version)
        progress(number + 1, len(spaces))
    stats.versions.sort(key=lambda version: -version.size)
    return stats


def _add_shard(shard: str, stats: Stats, version: VersionStats, now: float) -> None:
    with contextlib.suppress(OSError), os.scandir(shard) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                info = entry.stat(follow_symlinks=False)
                if entry.name.endswith(TEMP_SUFFIX):
                    stats.orphans += 1
                elif info.st_size < LEASE_MAX:
                    stats.leases += 1
                elif is_item(entry.name):
                    version.entries += 1
                    version.size += info.st_size
                    version.last_used = max(version.last_used, info.st_atime)
                    version.used_again += info.st_atime > info.st_mtime
                    version.ages_s.append(max(0.0, now - info.st_mtime))


def _count(folder: str) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(folder))  # noqa: PTH208  # names are all that is needed
    return 0


@dataclass(slots=True, kw_only=True)
class Verified:
    """What a verification found.

    Attributes:
        good: entries whose every byte was checked.
        corrupt: paths that do not verify.
        repaired: how many of them were moved aside.
    """

    good: int = 0
    corrupt: list[str] = field(default_factory=list)
    repaired: int = 0


def verify_entries(
    store: FileStore, *, repair: bool = True, progress: Progress = no_progress
) -> Verified:
    """Check every byte of every entry; what does not verify is moved aside where *repair* says."""
    found = Verified()
    todo = [(space, shard) for space in namespaces(store.layout) for shard in _shards(space)]
    for number, (space, shard) in enumerate(todo):
        version = _version_of(store, space)
        with contextlib.suppress(OSError):
            for name in os.listdir(shard):  # noqa: PTH208  # names are all that is needed
                if is_item(name):
                    _verify(store, Slot(version, name).at(f"{shard}/{name}"), found, repair=repair)
        progress(number + 1, len(todo))
    return found


def _shards(space: Namespace) -> list[str]:
    return [f"{space.path}/{name}" for name in subfolders(space.path)]


def _version_of(store: FileStore, space: Namespace) -> CodeVersion:
    """The version that a folder is: its exact name is noted in it."""
    function = function_of(space.folder)
    with contextlib.suppress(OSError, ValueError, KeyError):
        note = json.loads(Path(space.path, CODE_FILE).read_text(encoding="utf-8"))
        function = str(note["function"])
    return store.version(function, space.name)


def _verify(store: FileStore, slot: Slot, found: Verified, *, repair: bool) -> None:
    try:
        entry = store.peek(slot.path, slot.binding)
        if isinstance(entry, LeaseRecord):
            return
        if isinstance(entry, LargeEntry):
            entry.verify()
        if isinstance(entry, (Entry, LargeEntry)):
            found.good += 1
            return
    except FileNotFoundError:
        return
    except (OSError, CorruptEntryError):
        pass
    found.corrupt.append(slot.path)
    if repair and store.quarantine(slot):
        found.repaired += 1
