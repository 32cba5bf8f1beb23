"""Single flight: whoever comes first computes, the others wait for the result."""

from __future__ import annotations

import enum
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import LargeEntry
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.stores import leases
from joblib_ext.stores.leases import Lease
from joblib_ext.stores.store import Refusal, Slot, Store, Unusable, View
from mlops_ext.processes.identity import Liveness

_FIRST_PAUSE_S = 0.002
_LONGEST_PAUSE_S = 0.2
"""A waiter looks five times a second at least; with many waiters that is what a server bears."""
_GROWTH = 1.5

_waiting: dict[int, str] = {}


@dataclass(slots=True, kw_only=True)
class _Watch:
    """Watches the heartbeats of leases by this process's own monotonic clock.

    Attributes:
        lease_s: how long an owner may be silent.
        clock: the clock.
        seen: the last renewal of each owner, by its token, and when it was first seen.
    """

    lease_s: float
    clock: Callable[[], float]
    seen: dict[bytes, tuple[int, float]] = field(default_factory=dict)

    def is_dead(self, record: LeaseRecord) -> bool:
        """Whether the owner is gone, or has been silent for a lease."""
        owner = record.owner()
        now = self.clock()
        if owner is Liveness.DEAD:
            return True
        renewals, since = self.seen.get(record.token, (None, now))
        if owner is Liveness.ALIVE or renewals != record.renewals:
            self.seen[record.token] = record.renewals, now
            return False
        return now - since > self.lease_s


def acquire_or_wait(
    store: Store,
    slot: Slot,
    view: View,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Entry | LargeEntry | Lease | None:
    """The entry another process computed, a lease to compute under, or None: compute without.

    Args:
        store: the store.
        slot: where the entry will stand.
        view: what was just found there: a lease, or nothing.
        clock: a monotonic clock; no clock is ever compared with another host's.
        sleep: waits.
    """
    may_wait = not _in_event_loop()
    watch = _Watch(lease_s=store.options.lease_s, clock=clock)
    deadline = clock() + store.options.wait_s
    pause = _FIRST_PAUSE_S
    try:
        while True:
            outcome = _step(store, slot, view, watch)
            if outcome is not _WAIT:
                return None if isinstance(outcome, enum.Enum) else outcome
            if not may_wait or clock() >= deadline or _would_deadlock(slot.path):
                return None
            _waiting[threading.get_ident()] = slot.path
            sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311  # spreads the waiters
            pause = min(pause * _GROWTH, _LONGEST_PAUSE_S)
            view = store.look(slot)
    finally:
        _waiting.pop(threading.get_ident(), None)


class _Next(enum.Enum):
    """What to do when there is neither an entry nor a lease to be had."""

    WAIT = "wait"
    COMPUTE = "compute"


_WAIT, _COMPUTE = _Next.WAIT, _Next.COMPUTE


def _step(
    store: Store, slot: Slot, view: View, watch: _Watch
) -> Entry | LargeEntry | Lease | _Next:
    """What one look at the slot leads to."""
    if isinstance(view, (Entry, LargeEntry)):
        return view
    if isinstance(view, Unusable):
        return _COMPUTE
    if isinstance(view, LeaseRecord):
        own = store.resume(slot, view)
        if own is not None or _would_deadlock(slot.path):
            return own or _COMPUTE
        if _is_ours(slot.path, view) or not watch.is_dead(view):
            return _WAIT
        taken = store.take_over(slot, view, watch.is_dead)
    else:
        taken = store.acquire(slot)
    if isinstance(taken, Lease):
        return taken
    return _WAIT if taken is Refusal.BY_OTHERS else _COMPUTE


def _is_ours(path: str, record: LeaseRecord) -> bool:
    """Whether another thread of this process computes under *record*: no lease is needed then."""
    lease = leases.held_by_this_process(path)
    return lease is not None and lease.record.token == record.token


def _would_deadlock(path: str) -> bool:
    """Whether the lease's owner is this thread, an ancestor, or waits for this thread."""
    if leases.inherited(path):
        return True
    me = threading.get_ident()
    seen: set[str] = set()
    wanted: str | None = path
    while wanted is not None and wanted not in seen:
        seen.add(wanted)
        lease = leases.held_by_this_process(wanted)
        if lease is None:
            return False
        if lease.thread == me:
            return True
        wanted = _waiting.get(lease.thread)
    return False


def _in_event_loop() -> bool:
    """Whether an asyncio loop runs in this thread: it must not be blocked by waiting."""
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None  # noqa: SLF001  # no error
