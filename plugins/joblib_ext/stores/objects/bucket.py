"""What a store has of a bucket: requests, what they came to, and what the server can do."""

from __future__ import annotations

import contextlib
import os
from dataclasses import asdict, dataclass

from joblib_ext.entries.entry import HEADER
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.settings import SharedOptions
from joblib_ext.stores.events import Events
from joblib_ext.stores.objects.client import Answer, Client, StoreError
from joblib_ext.stores.objects.events import ObjectEvents
from joblib_ext.stores.objects.layout import ObjectLayout
from joblib_ext.stores.objects.location import clean
from joblib_ext.stores.objects.reading import fetch
from joblib_ext.stores.store import BaseStore

_ADVICE = (
    "Check the bucket, the rights and the credentials (backend option storage_options, or the"
    " cloud's own environment variables). Results are computed and returned as usual"
)


NOBODY = bytes(8)


@dataclass(frozen=True, slots=True)
class StandingLease(LeaseRecord):
    """A lease as it was seen in the store.

    Attributes:
        tag: the object's tag: who swaps it out is its heir.
    """

    tag: str


def standing(data: bytes, tag: str) -> StandingLease | None:
    """The lease that *data* is, or None."""
    record = LeaseRecord.parse(data)
    return StandingLease(**asdict(record), tag=tag) if record is not None else None


def is_tombstone(record: LeaseRecord) -> bool:
    """Whether a lease has ended: whoever meets it may take it over."""
    return record.host_token == NOBODY


class Bucket(BaseStore):
    """The objects of one store, and whether the server keeps conditions of writes."""

    def __init__(self, location: str, options: SharedOptions) -> None:
        self.layout = ObjectLayout(clean(location))
        self.options = options
        self.key: bytes | None = options.sign_key
        self.client = Client(self.layout.location, options)
        self.events: Events = ObjectEvents(self.client, self.object_key(self.layout.events))
        self._conditions: bool | None = None
        self._noted: set[str] = set()

    def object_key(self, path: str) -> str:
        """The object's key below the location."""
        return path[len(self.layout.location) + 1 :]

    def path_of(self, key: str) -> str:
        """The path of the object with *key*."""
        return f"{self.layout.location}/{key}"

    def names_in(self, folder: str) -> list[str]:
        """Names of the objects and folders in *folder*."""
        with contextlib.suppress(StoreError):
            return self.client.names(self.object_key(folder))
        return []

    def read(self, path: str) -> bytes | None:
        """The bytes of an object."""
        found = fetch(self.client, self.object_key(path))
        return None if isinstance(found, Answer) else bytes(found[0])

    def create(self, path: str) -> bool:
        """By a conditional create."""
        return isinstance(self.client.put(self.object_key(path), b"1", "create"), str)

    def remove(self, path: str) -> None:
        """Remove an object."""
        self.remove_all([path])

    def remove_all(self, paths: list[str]) -> bool:
        """Remove objects, by bulk; False, with one warning, where that was not possible."""
        if isinstance(self.client.delete([*map(self.object_key, paths)]), Answer):
            self.warn("remove", "objects could not be removed")
            return False
        return True

    def ask_lease(self, path: str) -> StandingLease | Answer | None:
        """The lease at *path*; None where something else stands, or why nothing is known."""
        found = fetch(self.client, self.object_key(path), range=(0, HEADER.size))
        if isinstance(found, Answer):
            return found
        data, tag = found
        return standing(bytes(data), tag)

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

    def warn(self, kind: str, what: str) -> None:
        """Tell of the client's last trouble, once a process and kind."""
        message = f"{self.layout.location}: {what}: {self.client.trouble}. {_ADVICE}"
        self.events.warn_once(kind, message)
