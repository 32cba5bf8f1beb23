"""A store in an object store: entries, leases and house-keeping, all as objects."""

from __future__ import annotations

import datetime as dt
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from joblib_ext.entries.entry import HEADER, MAGIC, Entry, build, is_foreign
from joblib_ext.entries.large_entry import LargeEntry, MemorySource, Source, Verdict, judge
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.entries.payload import Buffer
from joblib_ext.settings import SharedOptions
from joblib_ext.stores import leases
from joblib_ext.stores.events import Events, count_events
from joblib_ext.stores.layout import CODE_FILE, LEASE_MAX
from joblib_ext.stores.leases import Lease
from joblib_ext.stores.limits import Row, check_age, choose, size_of
from joblib_ext.stores.objects import lease
from joblib_ext.stores.objects.client import Answer, Client, StoreError
from joblib_ext.stores.objects.events import ObjectEvents
from joblib_ext.stores.objects.layout import ObjectLayout
from joblib_ext.stores.objects.lease import ObjectLease, StandingLease, is_tombstone, parse
from joblib_ext.stores.objects.location import clean
from joblib_ext.stores.objects.reading import fetch
from joblib_ext.stores.reader import open_bytes
from joblib_ext.stores.store import UNUSABLE, CodeVersion, Found, Refusal, Slot, View

_TRIES = 4
"""Between two of them somebody else must have written the object: seldom once."""
_SINGLE_PUT = 1 << 30
"""A larger entry is written in parts and without a condition: S3 takes 5 GB in one piece, and a
broken connection should not cost so much."""
_LONG_PUT = 4 << 20
"""Smaller entries are written well within a lease."""
_SLOWEST = 2 << 20
"""Bytes a second that a transfer makes at least, or it may be taken for dead."""
_ADVICE = (
    "Check the bucket, the rights and the credentials (backend option storage_options, or the"
    " cloud's own environment variables). Results are computed and returned as usual"
)


class ObjectStore:
    """Implements `joblib_ext.stores.store.Store`; what each function promises stands there.

    What each object leans on: a write is atomic and seen by every reader that asks afterwards; a
    conditional create succeeds once; a swap succeeds only for whoever saw the last write.
    """

    def __init__(self, location: str, options: SharedOptions) -> None:
        self.layout = ObjectLayout(clean(location))
        self.options = options
        self.key: bytes | None = options.sign_key
        self.client = Client(self.layout.location, options)
        self.events: Events = ObjectEvents(self.client, self.layout.key(self.layout.events))
        self._conditions: bool | None = None
        self._noted: set[str] = set()

    def object_key(self, path: str) -> str:
        """The key of the object at *path*."""
        return self.layout.key(path)

    def version(self, func_id: str, namespace: str, code: str = "") -> CodeVersion:
        """The version of *func_id* that has this namespace."""
        folder = self.layout.namespace(func_id, namespace) + "/"
        return CodeVersion(func_id, namespace, folder, code)

    def versions(self, func_id: str) -> list[CodeVersion]:
        """All versions of *func_id* that have an entry."""
        names = self.client.folders(self.object_key(self.layout.function(func_id)))
        return [self.version(func_id, name) for name in names]

    def has_function(self, func_id: str) -> bool:
        """Whether any version of *func_id* has an entry."""
        return bool(self.versions(func_id))

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
            return parse(bytes(data), tag)
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

    def ask_lease(self, path: str) -> StandingLease | Answer | None:
        """The lease at *path*; None where something else stands, or why nothing is known."""
        found = fetch(self.client, self.object_key(path), range=(0, HEADER.size))
        if isinstance(found, Answer):
            return found
        data, tag = found
        return parse(bytes(data), tag)

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
        self.events.note("corrupt", path)
        self.events.warn_once(
            f"corrupt {path}",
            f"a cached result did not verify; it is computed again. The damaged object: {aside}",
        )
        return True

    # -- leases ---------------------------------------------------------------------------------

    def acquire(self, slot: Slot) -> Lease | Refusal:
        """A lease on *slot*, by a conditional create."""
        return lease.acquire(self, slot)

    def resume(self, slot: Slot, record: LeaseRecord) -> Lease | None:
        """There is none that this process does not know of: `acquire` has looked."""
        del slot, record
        return None

    def has_failed(self, slot: Slot, record: LeaseRecord, view: View) -> bool:
        """Whether a tombstone with its token stands in place of the lease *record*."""
        del slot
        return isinstance(view, LeaseRecord) and view.token == record.token and is_tombstone(view)

    def take_over(
        self, slot: Slot, record: LeaseRecord, is_dead: Callable[[LeaseRecord], bool]
    ) -> Lease | Refusal:
        """A lease in place of a dead owner's, by a swap."""
        del is_dead
        return lease.take_over(self, slot, record)

    def keeps_conditions(self) -> bool:
        """Whether writes can be made to depend on what stands there; tried once a process.

        Some servers that speak S3 ignore the condition. Then nobody can have a lease, and each
        process computes; a value is right all the same, as a write is atomic.
        """
        if self._conditions is None:
            self._conditions = self._probe()
        return self._conditions is True

    def _probe(self) -> bool | None:
        put = self.client.put
        key = self.object_key(f"{self.layout.probes}/{os.urandom(8).hex()}")
        first = put(key, b"1", "create")
        if first is Answer.MISSING or first is Answer.FAILED:
            return None
        kept = put(key, b"2", "create") is Answer.TAKEN
        kept = kept and put(key, b"3", {"e_tag": '"0123456789abcdef"'}) is Answer.TAKEN
        self.client.delete(key)
        if not kept:
            self.events.warn_once(
                "conditions",
                f"{self.layout.location}: this object store ignores conditions of writes"
                " (If-None-Match, If-Match); several processes may compute the same result",
            )
        return kept

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

    def remove(self, path: str) -> None:
        """Remove an entry, or all that stands below a folder."""
        if isinstance(self.client.delete(self.object_key(path)), Answer):
            self.warn("remove", f"{path} could not be removed")

    def remove_entry(self, slot: Slot, token: bytes) -> None:
        """Remove one writing: it is swapped for a tombstone, which is deleted."""
        found = fetch(self.client, self.object_key(slot.path), range=(0, HEADER.size))
        if not isinstance(found, Answer) and bytes(found[0])[40:48] == token:
            lease.bury(self, slot.path, found[1])

    def clear(self, version: CodeVersion | None = None, func_id: str = "") -> None:
        """Remove entries, and wait until they are gone.

        Raises:
            StoreError: some are still there: to say nothing would serve what was cleared.
        """
        folder = version.folder.rstrip("/") if version is not None else self.layout.items
        if version is None and func_id:
            folder = self.layout.function(func_id)
        keys = [row["path"] for row in self.client.objects(self.object_key(folder))]
        if isinstance(self.client.delete(keys), Answer):
            raise StoreError(f"{folder} could not be cleared: {self.client.trouble}. {_ADVICE}")

    def remove_all(self, paths: Sequence[str]) -> bool:
        """Remove objects, by bulk; False, with one warning, where that was not possible."""
        if isinstance(self.client.delete([*map(self.object_key, paths)]), Answer):
            self.warn("evict", "entries could not be removed")
            return False
        return True

    def claim(self, name: str) -> bool:
        """By a conditional create."""
        mine = f"{self.layout.claims}/{name}"
        if isinstance(self.client.put(self.object_key(mine), b"1", "create"), Answer):
            return False
        return self.remove_all([path for path in self.names_in(self.layout.claims) if path != mine])

    def names_in(self, folder: str) -> Sequence[str]:
        """Paths of the objects below *folder*."""
        try:
            rows = self.client.objects(self.object_key(folder))
        except StoreError:
            return []
        return [self.layout.path(row["path"]) for row in rows]

    def events_so_far(self) -> Counter[str]:
        """What stands in the objects of all processes."""
        lines: list[str] = []
        for path in self.names_in(self.layout.events):
            found = fetch(self.client, self.object_key(path))
            if not isinstance(found, Answer):
                lines += bytes(found[0]).decode(errors="replace").splitlines()
        return count_events(lines)

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
            path, written = self.layout.path(row["path"]), row["last_modified"].timestamp()
            if not path.endswith(CODE_FILE):
                function, namespace, *_ = path.removeprefix(self.layout.items + "/").split("/")
                yield Found(path, function, namespace, row["size"], written, written)

    def note_of(self, version: CodeVersion) -> bytes | None:
        """The object that says what a version is."""
        found = fetch(self.client, self.object_key(version.folder + CODE_FILE))
        return None if isinstance(found, Answer) else bytes(found[0])

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

    def warn(self, kind: str, what: str) -> None:
        """Tell of the client's last trouble, once a process and kind."""
        message = f"{self.layout.location}: {what}: {self.client.trouble}. {_ADVICE}"
        self.events.warn_once(kind, message)
