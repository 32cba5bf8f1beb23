"""A store in an object store: entries, leases and house-keeping, all as objects."""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from joblib_ext.entries.entry import HEADER, MAGIC, Entry, build, is_foreign
from joblib_ext.entries.large_entry import LargeEntry, MemorySource, Source, Verdict, judge
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.entries.payload import Buffer
from joblib_ext.stores import leases
from joblib_ext.stores.layout import CODE_FILE, LEASE_MAX
from joblib_ext.stores.leases import Lease
from joblib_ext.stores.limits import Row, check_age, choose, size_of
from joblib_ext.stores.objects import lease
from joblib_ext.stores.objects.bucket import Bucket, StandingLease, is_tombstone, standing
from joblib_ext.stores.objects.client import Answer, StoreError
from joblib_ext.stores.objects.lease import ObjectLease
from joblib_ext.stores.objects.reading import fetch
from joblib_ext.stores.reader import open_bytes
from joblib_ext.stores.store import UNUSABLE, CodeVersion, Found, Slot, View

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
            data, tag = found
            view = self._judge(data, tag, slot)
            if view is not None:
                return view
        if is_foreign(bytes(memoryview(data)[: HEADER.size])):
            return UNUSABLE
        return None if self.quarantine(slot) else UNUSABLE

    def _judge(self, data: Any, tag: str, slot: Slot) -> Entry | LargeEntry | StandingLease | None:
        if len(data) < LEASE_MAX:
            return standing(bytes(data), tag)
        found = open_bytes(data, slot.path, slot.binding, self.key)
        return None if isinstance(found, LeaseRecord) else found

    def source_at(self, path: str) -> tuple[Source, int]:
        """An object's bytes and their number.

        Raises:
            FileNotFoundError: there is nothing.
            StoreError: the store did not answer.
        """
        found = fetch(self.client, self.object_key(path))
        if found is Answer.MISSING:
            raise FileNotFoundError(path)
        if isinstance(found, Answer):
            raise StoreError(self.client.trouble)
        return MemorySource(found[0]), len(found[0])

    def token_at(self, path: str) -> bytes | None:
        """The token of the entry at *path*, from its first bytes, or None."""
        data = self.client.read(self.object_key(path), 0, HEADER.size)
        if isinstance(data, Answer) or data[:8] != MAGIC:
            return None
        return data[40:48]

    def quarantine(self, slot: Slot | LargeEntry) -> bool:
        """Move what stands at *slot* aside, unless it verifies after all. True if it was moved."""
        path = slot.path
        try:
            source, size = self.source_at(path)
        except OSError:
            return False
        if judge(source, size, slot.binding, self.key) is not Verdict.DAMAGED:
            return False  # somebody put a good one there meanwhile, or a lease
        aside = f"{self.layout.corrupt}/{path.rpartition('/')[2]}.{os.urandom(4).hex()}"
        for answer in (
            self.client.copy(self.object_key(path), self.object_key(aside)),
            self.client.delete(self.object_key(path)),
        ):
            if isinstance(answer, Answer):
                self.warn("aside", f"a corrupt entry stays at {path}")
                return False
        self.events.corrupt(path, f"The damaged object: {aside}")
        return True

    acquire = lease.acquire
    take_over = lease.take_over

    def resume(self, slot: Slot, record: LeaseRecord) -> Lease | None:
        """There is none that this process does not know of: `acquire` has looked."""
        del slot, record
        return None

    def has_failed(self, slot: Slot, record: LeaseRecord, view: View) -> bool:
        """Whether a tombstone with its token stands in place of the lease *record*."""
        del slot
        return isinstance(view, LeaseRecord) and view.token == record.token and is_tombstone(view)

    # -- writing --------------------------------------------------------------------------------

    def build(
        self, pieces: Sequence[Buffer], buffers: int, metadata: Mapping[str, Any], binding: bytes
    ) -> tuple[list[Buffer], bytes]:
        """An entry in one piece, and its token."""
        whole, token = build(pieces, buffers, metadata, binding, **self.options.building)
        return [b"".join(whole)], token

    def publish(self, slot: Slot, pieces: Sequence[Buffer], token: bytes) -> None:
        """Put an entry at *slot*, in place of this process's lease where it has one.

        Of two that computed, the one whose lease was taken over finds that its tag is stale: an
        entry that stands there is as right, and a lease is swapped for this entry.

        Raises:
            StoreError: the store refused, or did not answer.
        """
        (data,) = pieces
        held = leases.held_by_this_process(slot.path)
        if not isinstance(held, ObjectLease) or len(data) > _SINGLE_PUT:
            if isinstance(self.client.put(self.object_key(slot.path), data), Answer):
                raise StoreError(self.client.trouble)
        else:
            with held.lock:
                if len(data) > _LONG_PUT:
                    held.extend(held.lease_s + len(data) / _SLOWEST)
                self._swap_in(slot.path, data, token, held.tag)
        self._note_code(slot.version)

    def _swap_in(self, path: str, data: Buffer, token: bytes, tag: str) -> None:
        mode: Any = {"e_tag": tag}
        for _ in range(_TRIES):
            answer = self.client.put(self.object_key(path), data, mode)
            if isinstance(answer, str):
                return
            found = fetch(self.client, self.object_key(path), range=(0, HEADER.size))
            if found is Answer.MISSING:  # cleared meanwhile, or there is no such bucket
                mode = "create"
            elif isinstance(found, Answer):
                break
            elif (head := bytes(found[0]))[:8] == MAGIC:
                if head[40:48] == token:
                    self.events.note("lost-reply", path)
                return
            elif answer is Answer.FAILED:
                break
            else:
                mode = {"e_tag": found[1]}
        raise StoreError(self.client.trouble)

    def _note_code(self, version: CodeVersion) -> None:
        """Say once a process what a namespace is; nobody but people needs it."""
        if version.folder not in self._noted:
            self._noted.add(version.folder)
            content = json.dumps({"function": version.func_id, "code": version.code}).encode()
            self.client.put(self.object_key(version.folder + CODE_FILE), content, "create")

    # -- many entries ---------------------------------------------------------------------------

    def remove_entry(self, slot: Slot, token: bytes) -> None:
        """Remove one writing: it is swapped for a tombstone, which is deleted."""
        found = fetch(self.client, self.object_key(slot.path), range=(0, HEADER.size))
        if not isinstance(found, Answer) and bytes(found[0])[40:48] == token:
            lease.bury(self, slot.path, found[1])

    def clear(self, folder: str) -> None:
        """Remove what stands below *folder*, and wait until it is gone.

        Raises:
            StoreError: some is still there; to say nothing would serve what was cleared.
        """
        rows = self.client.objects(self.object_key(folder.rstrip("/")))
        if not self.remove_all([self.path_of(row["path"]) for row in rows]):
            raise StoreError(f"{folder} could not be cleared: {self.client.trouble}")

    def clock(self) -> float:
        """Now, by the clock that gives objects their times."""
        path = f"{self.layout.probes}/{os.urandom(8).hex()}"
        self.client.put(self.object_key(path), b"1")
        found = self.client.get(self.object_key(path))
        now = time.time() if isinstance(found, Answer) else found.meta["last_modified"].timestamp()
        self.remove(path)
        return float(now)

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
            path, written = self.path_of(row["path"]), row["last_modified"].timestamp()
            if not path.endswith(CODE_FILE):
                function, namespace, *_ = path.removeprefix(self.layout.items + "/").split("/")
                yield Found(path, function, namespace, row["size"], written, written)

    def shrink(
        self,
        bytes_limit: int | str | None,
        items_limit: int | None,
        age_limit: dt.timedelta | None,
    ) -> int:
        """Remove the entries that were written first, until every limit holds."""
        check_age(age_limit)
        found = [one for one in self.walk() if one.is_entry]
        rows: list[Row] = [(one.used, one.size, "", one.path) for one in found]
        victims = choose(rows, size_of(bytes_limit), items_limit, age_limit)
        return len(victims) if self.remove_all([path for *_, path in victims]) else 0
