"""Single flight: whoever comes first computes, the others wait for the result."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import LargeEntry
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.stores import leases
from joblib_ext.stores.kinds import Store
from joblib_ext.stores.leases import Lease, Refusal
from joblib_ext.stores.store import Slot, Unusable, View
from mlops_ext.processes.identity import Liveness

log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.002
# A waiter looks five times a second at least; with many waiters that is what a server bears.
_LONGEST_PAUSE_S = 0.2
_GROWTH = 1.5
# A thread waits so long for another of its process, which may wait for it: for a lock that it
# holds, or in a pool. Then one thread computes, and the others wait for so long again.
_IN_PROCESS_S = 10.0
_TELL_AFTER_S = 10.0
_TELL_AGAIN_S = 60.0

_waiting: dict[int, str] = {}
# When a thread last stopped waiting for another of this process, by path.
_gave_up: dict[str, float] = {}


@dataclass(slots=True, kw_only=True)
class _Watch:
    """Watches the heartbeats of leases by this process's own monotonic clock.

    Attributes:
        clock: the clock.
        last: the lease that was last waited for.
        seen: the last renewal of each owner, by its token, and when it was first seen.
    """

    clock: Callable[[], float]
    last: LeaseRecord | None = None
    seen: dict[bytes, tuple[int, float]] = field(default_factory=dict)

    def is_dead(self, record: LeaseRecord) -> bool:
        """Whether the owner is gone, or has been silent for its lease."""
        owner, is_silent = record.owner(), self.is_silent(record)
        return owner is Liveness.DEAD or (owner is Liveness.UNKNOWN and is_silent)

    def is_silent(self, record: LeaseRecord) -> bool:
        """Whether the owner has not renewed the lease for as long as it may."""
        now = self.clock()
        if self.seen.get(record.token, (None, now))[0] != record.renewals:
            self.seen[record.token] = record.renewals, now
        return now - self.seen[record.token][1] > record.lease_s

    def is_in_vain(self, record: LeaseRecord, store: Store) -> bool:
        """Whether a living owner is silent because the store takes no result, nor its release."""
        if not self.is_silent(record):
            return False
        del self.seen[record.token]
        return not store.can_be_written()


def acquire_or_wait(
    store: Store,
    slot: Slot,
    view: View,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Entry | LargeEntry | Lease | None:
    """The entry another process computed, a lease to compute under, or None: compute without.

    A living owner is waited for as long as it lives, or for the option ``wait_s``: then one of
    those who wait computes too, and the others wait for both. When an owner fails, all who waited
    for it compute at once: the next would most likely fail too.

    Args:
        store: the store.
        slot: where the entry will stand.
        view: what was just found there: a lease, or nothing.
        clock: a monotonic clock; no clock is ever compared with another host's.
        sleep: waits.
    """
    watch = _Watch(clock=clock)
    begun, wait_s = clock(), store.options.wait_s
    wait_s = math.inf if wait_s is None else wait_s
    deadline = begun + wait_s
    tell_at = begun + _TELL_AFTER_S
    pause = _FIRST_PAUSE_S
    try:
        while True:
            owner = watch.last
            outcome = _step(store, slot, view, watch)
            if outcome is not Refusal.BY_OTHERS:
                return None if outcome is Refusal.NOT_POSSIBLE else outcome
            now = clock()
            if _would_deadlock(slot.path) or _is_stuck(slot.path, begun, now):
                return None
            if owner is not None and watch.last is not None and owner.token != watch.last.token:
                deadline = now + wait_s  # another one computes now
            if now >= deadline:
                relieved = _relieve(store, slot, view, watch)
                if relieved is not Refusal.BY_OTHERS:
                    return relieved if isinstance(relieved, Lease) else None
            if now >= tell_at:
                log.warning("waiting for %s, %.0f s", watch.last or "a result", now - begun)
                tell_at = now + _TELL_AGAIN_S
            _waiting[threading.get_ident()] = slot.path
            sleep(pause * random.uniform(0.7, 1.3))  # noqa: S311  # spreads the waiters
            pause = min(pause * _GROWTH, _LONGEST_PAUSE_S)
            view = store.look(slot)
    finally:
        _waiting.pop(threading.get_ident(), None)


def _step(
    store: Store, slot: Slot, view: View, watch: _Watch
) -> Entry | LargeEntry | Lease | Refusal:
    """What one look at the slot leads to: `BY_OTHERS` is to wait, `NOT_POSSIBLE` to compute."""
    if isinstance(view, (Entry, LargeEntry)):
        return view
    has_failed = watch.last is not None and store.has_failed(slot, watch.last, view)
    if has_failed or isinstance(view, Unusable):
        return Refusal.NOT_POSSIBLE
    if view is None:
        return store.acquire(slot)
    watch.last = view
    own = store.resume(slot, view)
    if own is not None or _would_deadlock(slot.path):
        return own or Refusal.NOT_POSSIBLE
    if not _is_ours(slot.path, view) and watch.is_dead(view):
        return store.take_over(slot, view, watch.is_dead)
    return Refusal.NOT_POSSIBLE if watch.is_in_vain(view, store) else Refusal.BY_OTHERS


def _relieve(store: Store, slot: Slot, view: View, watch: _Watch) -> Lease | Refusal:
    """The lease of an owner that takes too long; `BY_OTHERS` if somebody else has taken it."""
    if not isinstance(view, LeaseRecord):  # somebody took it at this moment: the next look tells
        return Refusal.BY_OTHERS if store.options.wait_s else Refusal.NOT_POSSIBLE
    is_refused = not store.options.wait_s or _is_ours(slot.path, view)
    return Refusal.NOT_POSSIBLE if is_refused else store.take_over(slot, view, watch.is_dead)


def _is_ours(path: str, record: LeaseRecord) -> bool:
    """Whether another thread of this process computes under *record*: no lease is needed then."""
    lease = leases.held_by_this_process(path)
    return lease is not None and lease.record.token == record.token


def _would_deadlock(path: str) -> bool:
    """Whether the lease is left behind, or its owner is this thread or waits for it."""
    if leases.is_left_behind(path):
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


def _is_stuck(path: str, begun: float, now: float) -> bool:
    """Whether another thread of this process was waited for long enough, by this one's turn."""
    if leases.held_by_this_process(path) is None:
        _gave_up.pop(path, None)
        return False
    if now - max(begun, _gave_up.get(path, begun)) < _IN_PROCESS_S:
        return False
    _gave_up[path] = now
    log.warning("a thread of this process computes %s and may wait for this one: not waiting", path)
    return True
