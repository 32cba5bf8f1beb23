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
from joblib_ext.maintenance.stats import Progress, no_progress
from joblib_ext.stores.files.lease import read_record
from joblib_ext.stores.files.scan import namespaces, shards, subfolders
from joblib_ext.stores.files.statx import fresh_path
from joblib_ext.stores.files.store import FileStore
from joblib_ext.stores.files.takeover import remove_dead
from joblib_ext.stores.files.trash import empty
from joblib_ext.stores.kinds import Store
from joblib_ext.stores.layout import CODE_FILE, LEASE_MAX
from joblib_ext.stores.objects.store import ObjectStore
from mlops_ext.files import TEMP_SUFFIX, liveness_of_maker, remove, temp_name
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
    store: Store,
    *,
    min_age_s: float = 60.0,
    sleep: Callable[[float], None] = time.sleep,
    progress: Progress = no_progress,
) -> Collected:
    """Remove what killed processes left, cleared trees, and what was moved aside.

    Ages are measured by the store's own clock: against a file or object that is made for it.

    Args:
        store: the store.
        min_age_s: an orphan or a silent lease has not changed for so long. A file whose writer is
            known to be dead goes at once.
        sleep: waits as long as an owner may be silent, once, where leases stand: to see whether
            they are renewed.
        progress: told how far it is.
    """
    if isinstance(store, ObjectStore):
        return _collect_objects(store, min_age_s)
    now = _server_time(store)
    done = Collected()
    done.trash = empty(store.layout.trash)
    done.corrupt = empty(store.layout.corrupt)
    leases: list[tuple[str, LeaseRecord]] = []
    versions = [space.path for space in namespaces(store.layout)]
    folders = [store.layout.root, store.layout.leases, *versions, *shards(store.layout)]
    for number, folder in enumerate(folders):
        for name, path in list(_entries(folder)):
            if name.endswith(TEMP_SUFFIX):
                done.orphans += _reap(name, path, now, min_age_s)
            elif (record := _lease_at(path)) is not None:
                leases.append((path, record))
        progress(number + 1, len(folders))
    done.leases = _reap_leases(store, leases, sleep)
    done.folders = _prune(store)
    return done


def _collect_objects(store: ObjectStore, min_age_s: float) -> Collected:
    """As above. Living leases are written anew all the time, so that their age says it all."""
    now = store.clock()
    old = [found for found in store.walk() if found.size < LEASE_MAX]
    leases = [found.path for found in old if now - found.written > min_age_s]
    layout = store.layout
    corrupt, probes = (
        [f"{folder}/{name}" for name in store.names_in(folder)]
        for folder in (layout.corrupt, layout.probes)
    )
    store.remove_all([*leases, *corrupt, *probes])
    return Collected(leases=len(leases), corrupt=len(corrupt), orphans=len(probes))


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
    liveness = liveness_of_maker(name)
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
    """Remove leases of owners that are dead, or silent for as long as they said they may be."""
    states = [(path, record, record.owner()) for path, record in leases]
    silent = [record.lease_s for _, record, owner in states if owner is Liveness.UNKNOWN]
    if silent:
        sleep(max(silent))
    return sum(
        owner is not Liveness.ALIVE and remove_dead(store, path, record)
        for path, record, owner in states
    )


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
