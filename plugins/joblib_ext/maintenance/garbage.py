"""Removing what killed processes left behind, and what was cleared or moved aside."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.maintenance.stats import Track
from joblib_ext.stores.kinds import Store
from joblib_ext.stores.layout import LEASE_MAX
from mlops_ext.processes.identity import Liveness


@dataclass(slots=True, kw_only=True)
class Collected:
    """What a garbage collection removed.

    Attributes:
        orphans: what temporary files and probes dead writers left.
        leases: leases of dead owners.
        trash: files and folders of cleared trees.
        corrupt: what had been moved aside.
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
    track: Track[tuple[str, LeaseRecord, Liveness]] = iter,
) -> Collected:
    """Remove what killed processes left, cleared trees, and what was moved aside.

    Args:
        store: the store.
        min_age_s: an orphan has not changed for so long. One whose writer is known to be dead
            goes at once.
        sleep: waits as long as an owner may be silent, once, where leases stand: to see whether
            they are renewed.
        track: shows how far it is.
    """
    layout = store.layout
    done = Collected(trash=store.empty(layout.trash), corrupt=store.empty(layout.corrupt))
    done.orphans = store.empty(layout.probes) + store.remove_all(store.litter(min_age_s))
    small = [found for found in store.walk() if found.size < LEASE_MAX and not found.is_temporary]
    leases = [(found.path, store.lease_at(found.path)) for found in small]
    states = [(path, record, record.owner()) for path, record in leases if record is not None]
    silent = [record.lease_s for _, record, owner in states if owner is Liveness.UNKNOWN]
    if silent:
        sleep(max(silent))
    for path, record, owner in track(states):
        done.leases += owner is not Liveness.ALIVE and store.remove_dead(path, record)
    done.folders = store.prune()
    return done
