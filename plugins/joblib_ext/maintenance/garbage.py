"""Removing what killed processes left behind, and what was cleared or moved aside."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.maintenance.stats import Progress, find_store, no_progress
from joblib_ext.stores.files.layout import CODE_FILE, LEASE_MAX
from joblib_ext.stores.files.lease import ask_record, read_record
from joblib_ext.stores.files.scan import namespaces, shards, subfolders
from joblib_ext.stores.files.statx import fresh_path
from joblib_ext.stores.files.store import FileStore
from joblib_ext.stores.files.takeover import is_takeover_lock, remove_dead, takeover_locks_of
from joblib_ext.stores.files.trash import empty
from mlops_ext.files import TEMP_SUFFIX, parse_temp_name, remove, temp_name
from mlops_ext.processes.identity import Liveness


@dataclass(slots=True, kw_only=True)
class Collected:
    """What a garbage collection removed.

    Attributes:
        orphans: temporary files whose writers are gone.
        leases: leases of dead owners.
        trash: files and folders of cleared trees.
        corrupt: files that had been moved aside.
        folders: folders of functions without entries.
    """

    orphans: int = 0
    leases: int = 0
    trash: int = 0
    corrupt: int = 0
    folders: int = 0


def collect_garbage(
    location: Path | FileStore,
    *,
    min_age_s: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
    progress: Progress = no_progress,
) -> Collected:
    """Remove what killed processes left, cleared trees, and what was moved aside.

    Ages are measured by the file server's own clock: against a file that is made for it.

    Args:
        location: a store, or its location.
        min_age_s: an orphan or a silent lease has not changed for so long. A file whose writer is
            known to be dead goes at once.
        sleep: waits for *lease_s*, once, where leases stand: to see whether they are renewed.
        progress: told how far it is.
    """
    store = location if isinstance(location, FileStore) else find_store(location)
    now = _server_time(store)
    done = Collected()
    done.trash = empty(store.layout.trash)
    done.corrupt = empty(store.layout.corrupt)
    leases: list[tuple[str, LeaseRecord]] = []
    takeover_locks: list[tuple[str, str]] = []
    versions = [space.path for space in namespaces(store.layout)]
    folders = [store.layout.root, store.layout.leases, *versions, *shards(store.layout)]
    for number, folder in enumerate(folders):
        for name, path in list(_entries(folder)):
            if is_takeover_lock(name):
                takeover_locks.append((name, path))
            elif name.endswith(TEMP_SUFFIX):
                done.orphans += _reap(name, path, now, min_age_s)
            elif (record := _lease_at(path)) is not None:
                leases.append((path, record))
        progress(number + 1, len(folders))
    done.leases = _reap_leases(store, leases, sleep)
    needed = {takeover_lock for lease in leases for takeover_lock in _needed(*lease)}
    done.orphans += sum(
        _reap(name, path, now, min_age_s) for name, path in takeover_locks if path not in needed
    )
    done.folders = _prune(store)
    return done


def _entries(folder: str) -> Iterator[tuple[str, str]]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            yield entry.name, entry.path


def _server_time(store: FileStore) -> float:
    """Now, by the clock that gives files their times."""
    probe = Path(store.layout.root, temp_name("clock"))
    try:
        probe.touch()
        return fresh_path(str(probe)).mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


def _reap(name: str, path: str, now: float, min_age_s: float) -> int:
    """Remove a temporary file if its writer is gone; 1 if it was removed."""
    maker = parse_temp_name(name)
    liveness = maker.liveness() if maker is not None else Liveness.UNKNOWN
    if liveness is Liveness.ALIVE:
        return 0
    if liveness is Liveness.UNKNOWN:
        try:
            if now - fresh_path(path).mtime < min_age_s:
                return 0
        except OSError:
            return 0
    return remove(path).removed


def _lease_at(path: str) -> LeaseRecord | None:
    with contextlib.suppress(OSError):
        found = os.stat(path)  # noqa: PTH116  # a text
        if found.st_size < LEASE_MAX and stat.S_ISREG(found.st_mode):
            return read_record(path)
    return None


def _reap_leases(
    store: FileStore, leases: list[tuple[str, LeaseRecord]], sleep: Callable[[float], None]
) -> int:
    """Remove leases of owners that are dead, or silent for *lease_s*."""
    states = [(path, record, record.owner()) for path, record in leases]
    silent = {
        takeover_lock.token: takeover_lock.renewals
        for path, record, owner in states
        if owner is not Liveness.ALIVE
        for _, takeover_lock in takeover_locks_of(path, record)
        if takeover_lock is not None and takeover_lock.owner() is Liveness.UNKNOWN
    }
    if silent or any(owner is Liveness.UNKNOWN for _, _, owner in states):
        sleep(store.options.lease_s)

    def is_dead(taker: LeaseRecord) -> bool:
        owner = taker.owner()
        return owner is Liveness.DEAD or (
            owner is Liveness.UNKNOWN and silent.get(taker.token) == taker.renewals
        )

    return sum(
        owner is not Liveness.ALIVE and remove_dead(store, path, record, is_dead)
        for path, record, owner in states
    )


def _needed(path: str, record: LeaseRecord) -> list[str]:
    """The takeover locks that must stay, since the lease they are about still stands."""
    found: LeaseRecord | None = record
    try:
        found = ask_record(path)
    except FileNotFoundError:
        return []
    except OSError:
        pass  # no answer: it may well stand
    if found is None or found.token != record.token:
        return []
    return [takeover_lock for takeover_lock, _ in takeover_locks_of(path, record)]


def _prune(store: FileStore) -> int:
    """Remove folders of versions that hold nothing but their note."""
    pruned = 0
    for space in list(namespaces(store.layout)):
        with contextlib.suppress(OSError):
            for shard in subfolders(space.path):
                with contextlib.suppress(OSError):
                    Path(space.path, shard).rmdir()
            if not subfolders(space.path):
                Path(space.path, CODE_FILE).unlink(missing_ok=True)
                Path(space.path).rmdir()
                pruned += 1
                Path(space.path).parent.rmdir()
    return pruned
