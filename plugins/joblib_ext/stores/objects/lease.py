"""Leases in an object store: made by a conditional create, kept and ended by compare-and-swap.

A lease stands under the key that the entry will have. Whoever writes names the tag of what it saw
there, and whose tag is stale has lost; so no clock of the server is needed.
"""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

from joblib_ext.entries.lease_record import LeaseRecord, own_record
from joblib_ext.stores import leases
from joblib_ext.stores.leases import Lease, Refusal
from joblib_ext.stores.objects.bucket import Bucket
from joblib_ext.stores.objects.client import NO_TAG, Answer
from joblib_ext.stores.store import Slot


class ObjectLease(Lease):
    """A lease that is an object, which is renewed for itself.

    Attributes:
        tag: the tag of the object.
        lost: whether something else stands in its place.
        lock: held while it is renewed, swapped for the entry, or released.
    """

    __slots__ = ("_store", "lock", "lost", "tag")

    def __init__(self, store: Bucket, path: str) -> None:
        self._store, self.tag, self.lost = store, NO_TAG, False
        self.lock = threading.Lock()
        self.record = own_record(leases.long_enough(store.options.lease_s))
        super().__init__(path, self)

    def is_lost(self) -> bool:
        """Whether somebody else's lease, or an entry, stood in its place when it was renewed."""
        return self.lost

    def acquire(self, mode: object) -> bool | None:
        """Write it under the condition *mode*; None where the store did not say whether it stands.

        A refusal may be the answer to a second try, after the reply to the first was lost.
        """
        with self.lock:
            answer = self._put(self.record, mode)
            if not isinstance(answer, Answer):
                return True
            return None if answer is Answer.MISSING else self._is_mine()  # missing: no such bucket

    def renew(self) -> None:
        """Say that the owner lives."""
        with self.lock:
            if self.held and not self.lost:
                answer = self.count_up(self.record.lease_ms)
                if answer is Answer.TAKEN or answer is Answer.MISSING:
                    self.lost = self._is_mine() is False

    def count_up(self, lease_ms: int) -> object:
        """Renew it for *lease_ms*: longer before a transfer, when it cannot be renewed."""
        self.record = replace(self.record, renewals=self.record.renewals + 1, lease_ms=lease_ms)
        return self._swap(self.record)

    def _swap(self, record: LeaseRecord) -> object:
        return self._put(record, self.tag, quick=True)

    def _put(self, record: LeaseRecord, mode: object, *, quick: bool = False) -> object:
        key = self._store.object_key(self.path)
        answer = self._store.client.put(key, record.pack(), mode, quick=quick)
        if not isinstance(answer, Answer):
            self.tag = answer
        return answer

    def _is_mine(self) -> bool | None:
        """Whether it stands there; then its tag is known again."""
        found = self._store.head(self.path)
        if isinstance(found, Answer):
            return None if found is Answer.FAILED else False
        record = LeaseRecord.parse(*found)
        if record is None or record.token != self.record.token:
            return False
        self._store.events.note("lost-reply", self.path)
        self.tag = record.tag
        return True

    def remove(self) -> bool | None:
        """Take the lease away: True if it is gone, False if it was not there, None if refused.

        It is swapped for a tombstone with its token, which only its owner can do.
        """
        with self.lock:
            tombstone = self.record.ended()
            answer = self._swap(tombstone)
            if answer is Answer.TAKEN and not self.lost and self._is_mine():
                answer = self._swap(tombstone)
            if not isinstance(answer, Answer):
                return True
            return None if answer is Answer.FAILED else False

    def bury(self) -> None:
        """Delete the tombstone, unless somebody took it over."""
        remove_written(self._store, self.path, self.tag)


def remove_written(store: Bucket, path: str, tag: Any) -> bool:
    """Swap what has this *tag* for a tombstone and delete that; an object store deletes anything.

    Whoever meets the tombstone between the two takes it over after a moment.
    """
    tombstone, key = own_record(0.0).ended().pack(), store.object_key(path)
    if isinstance(store.client.put(key, tombstone, tag, quick=True), Answer):
        return False
    return store.client.delete([key]) is None


def remove_dead(store: Bucket, path: str, record: LeaseRecord) -> bool:
    """Take a dead owner's lease away; False if it was renewed since it was seen as *record*."""
    return remove_written(store, path, record.tag)


def acquire(store: Bucket, slot: Slot, mode: Any = "create") -> Lease | Refusal:
    """A lease on *slot*, if the object there meets the condition *mode*: by default, none is."""
    if not store.keeps_conditions():
        return Refusal.NOT_POSSIBLE
    lease = ObjectLease(store, slot.path)
    return lease.take(lambda: lease.acquire(mode))


def take_over(
    store: Bucket, slot: Slot, record: LeaseRecord, _is_dead: object = None
) -> Lease | Refusal:
    """A lease in place of *record*, that of a dead owner, if that still stands there."""
    taken = acquire(store, slot, record.tag)
    if isinstance(taken, Lease) and not record.is_over:
        store.events.note("takeover", slot.path)
    return taken
