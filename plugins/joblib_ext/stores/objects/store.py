"""A store in an object store: entries, leases and house-keeping, all as objects."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterator, Sequence
from typing import Any

from joblib_ext.entries.entry import HEADER, is_foreign, token_of
from joblib_ext.entries.large_entry import LargeEntry, MemorySource, Source, Verdict, judge
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.entries.payload import Buffer
from joblib_ext.stores import leases
from joblib_ext.stores.layout import CODE_FILE
from joblib_ext.stores.leases import Lease
from joblib_ext.stores.limits import Limits, Row, choose
from joblib_ext.stores.objects import lease
from joblib_ext.stores.objects.bucket import Bucket
from joblib_ext.stores.objects.client import Answer, StoreError
from joblib_ext.stores.objects.lease import ObjectLease
from joblib_ext.stores.objects.reading import fetch
from joblib_ext.stores.reader import open_bytes
from joblib_ext.stores.store import UNUSABLE, Found, Slot, View

# Between two of them somebody else must have written the object: seldom once.
_TRIES = 4
# A larger entry is written in parts and without a condition: S3 takes 5 GB in one piece, and a
# broken connection should not cost so much.
_SINGLE_PUT = 1 << 30
# Smaller entries are written well within a lease.
_LONG_PUT = 4 << 20
# Bytes a second that a transfer makes at least, or it may be taken for dead.
_SLOWEST = 2 << 20


class ObjectStore(Bucket):
    """A store in a bucket; see `BaseStore` for what its functions promise.

    What each object leans on: a write is atomic and seen by every reader that asks afterwards; a
    conditional create succeeds once; a swap succeeds only for whoever saw the last write.
    """

    # -- reading --------------------------------------------------------------------------------

    def look(self, slot: Slot) -> View:
        """What stands at *slot*: an entry, a lease, or None. One request for a hit."""
        data: Any = b""
        for _ in range(2):  # what does not verify is asked for again: a line may have broken it
            found = fetch(self.client, self.object_key(slot.path))
            if found is Answer.MISSING:
                return None
            if isinstance(found, Answer):
                self.warn("read", "a cached result could not be read")
                return UNUSABLE
            data = found[0]
            view = open_bytes(*found, slot.path, slot.binding, self.key)
            if view is not None:
                return view
        if is_foreign(bytes(memoryview(data)[: HEADER.size])):
            return UNUSABLE
        return None if self.quarantine(slot) else UNUSABLE

    def source_at(self, path: str) -> tuple[Source, int]:
        """An object's bytes and their number.

        Raises:
            FileNotFoundError: there is nothing.
            StoreError: the store did not answer.
        """
        found = fetch(self.client, self.object_key(path))
        if found is Answer.MISSING:
            raise FileNotFoundError(path)
        data, _ = self.client.must(found)
        return MemorySource(data), len(data)

    def quarantine(self, slot: Slot | LargeEntry) -> bool:
        """Move what stands at *slot* aside, unless it verifies after all. True if it was moved."""
        path, key = slot.path, self.object_key(slot.path)
        found = fetch(self.client, key)
        if isinstance(found, Answer):
            return False
        data, tag = found
        if judge(MemorySource(data), len(data), slot.binding, self.key) is not Verdict.DAMAGED:
            return False  # somebody put a good one there meanwhile, or a lease
        aside = f"{self.layout.corrupt}/{path.rpartition('/')[2]}.{os.urandom(4).hex()}"
        kept = self.client.put(self.object_key(aside), data)
        if isinstance(kept, Answer) or not lease.remove_written(self, path, tag):
            self.warn("aside", f"a corrupt entry stays at {path}")
            return False
        self.events.corrupt(path, f"The damaged object: {aside}")
        return True

    acquire = lease.acquire
    take_over = lease.take_over
    remove_dead = lease.remove_dead

    def resume(self, _slot: Slot, _record: LeaseRecord) -> Lease | None:
        """There is none that this process does not know of: `acquire` has looked."""
        return None

    def has_failed(self, _slot: Slot, record: LeaseRecord, view: View) -> bool:
        """Whether a tombstone with its token stands in place of the lease *record*."""
        return isinstance(view, LeaseRecord) and view.token == record.token and view.is_over

    # -- writing --------------------------------------------------------------------------------

    def publish(self, slot: Slot, pieces: Sequence[Buffer], token: bytes) -> None:
        """Put an entry at *slot*, in place of this process's lease where it has one.

        Of two that computed, the one whose lease was taken over finds that its tag is stale: an
        entry that stands there is as right, and a lease is swapped for this entry.

        Raises:
            StoreError: the store refused, or did not answer.
        """
        data = b"".join(pieces)
        held = leases.held_by_this_process(slot.path)
        if not isinstance(held, ObjectLease) or len(data) > _SINGLE_PUT:
            self.client.must(self.client.put(self.object_key(slot.path), data))
        else:
            with held.lock:
                if len(data) > _LONG_PUT:
                    held.count_up(int(1000 * (held.lease_s + len(data) / _SLOWEST)))
                self._swap_in(slot.path, data, token, held.tag)
        if slot.version.folder not in self._noted:  # nobody but people needs it: once a process
            self._noted.add(slot.version.folder)
            self.note_version(slot.version)

    def _swap_in(self, path: str, data: Buffer, token: bytes, tag: Any) -> None:
        mode = tag
        for _ in range(_TRIES):
            answer = self.client.put(self.object_key(path), data, mode)
            if not isinstance(answer, Answer):
                return
            found = self.head(path)
            if found is Answer.MISSING:  # cleared meanwhile, or there is no such bucket
                mode = "create"
            elif isinstance(found, Answer):
                break
            elif (standing := token_of(found[0])) is not None:
                if standing == token:
                    self.events.note("lost-reply", path)
                return
            elif answer is Answer.FAILED:
                break
            else:
                mode = found[1]
        raise StoreError(self.client.trouble)

    # -- many entries ---------------------------------------------------------------------------

    def remove_entry(self, slot: Slot, token: bytes) -> None:
        """Remove one writing: it is swapped for a tombstone, which is deleted."""
        found = self.head(slot.path)
        if not isinstance(found, Answer) and token_of(found[0]) == token:
            lease.remove_written(self, slot.path, found[1])

    def clear(self, folder: str) -> None:
        """Remove what stands below *folder*, and wait until it is gone.

        Raises:
            StoreError: some is still there; to say nothing would serve what was cleared.
        """
        rows = self.client.objects(self.object_key(folder.rstrip("/")))
        if self.client.delete([row["path"] for row in rows]) is not None:
            raise StoreError(f"{folder} could not be cleared: {self.client.trouble}")

    def list(self, kind: type[Any]) -> Any:
        """All entries: path, size and time of writing; there is no time of access."""
        when = dt.datetime.fromtimestamp
        return [kind(row.path, row.size, when(row.used)) for row in self.walk() if row.is_entry]

    def walk(self) -> Iterator[Found]:
        """All objects below the versions' folders."""
        try:
            rows = self.client.objects(self.object_key(self.layout.items))
        except StoreError:
            self.warn("list", "the cache could not be listed")
            return
        for row in rows:
            path = f"{self.layout.location}/{row['path']}"
            if not path.endswith(CODE_FILE):
                function, namespace, *_ = path.removeprefix(self.layout.items + "/").split("/")
                written = row["last_modified"].timestamp()
                yield Found(path, function, namespace, row["size"], written, written)

    def shrink(self, limits: Limits) -> int:
        """Remove the entries that were written first, until every limit holds."""
        rows = [Row(one.used, one.size, "", one.path) for one in self.walk() if one.is_entry]
        return self.remove_all([row.name for row in choose(rows, limits)])

    def empty(self, folder: str) -> int:
        """Remove what stands in *folder*; how many objects that were."""
        return self.remove_all([f"{folder}/{name}" for name in self.names_in(folder)])

    def litter(self, _min_age_s: float) -> Sequence[str]:
        """Nothing: a write is all or nothing."""
        return ()

    def prune(self) -> int:
        """Nothing: there are no folders."""
        return 0
