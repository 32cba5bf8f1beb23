"""What a store has of a bucket: requests, what they came to, and what the server can do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from typing import Any

from joblib_ext.entries.entry import HEADER, token_of
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.settings import SharedOptions
from joblib_ext.stores.events import Events
from joblib_ext.stores.objects.client import NO_TAG, Answer, Client, StoreError
from joblib_ext.stores.objects.layout import ObjectLayout
from joblib_ext.stores.objects.location import clean
from joblib_ext.stores.objects.reading import fetch
from joblib_ext.stores.store import BaseStore

_ADVICE = (
    "Check the bucket, the rights and the credentials (backend option storage_options, or the"
    " cloud's own environment variables). Results are computed and returned as usual"
)


class Bucket(BaseStore):
    """The objects of one store, and whether the server keeps conditions of writes."""

    def __init__(self, location: str, options: SharedOptions) -> None:
        self.layout = ObjectLayout(clean(location))
        self.options = options
        self.key: bytes | None = options.sign_key
        self.client = Client(self.layout.location, options)
        self.events = Events(self.layout.events, self.write)
        self._conditions: bool | None = None
        self._noted: set[str] = set()

    def object_key(self, path: str) -> str:
        """The object's key below the location."""
        return path[len(self.layout.location) + 1 :]

    def names_in(self, folder: str) -> list[str]:
        """Names of the objects and folders in *folder*."""
        with contextlib.suppress(StoreError):
            return self.client.names(self.object_key(folder))
        return []

    def read(self, path: str) -> bytes | None:
        """The bytes of an object."""
        found = fetch(self.client, self.object_key(path))
        return None if isinstance(found, Answer) else bytes(found[0])

    def write(self, path: str, data: bytes) -> None:
        """By one put."""
        self.client.put(self.object_key(path), data, quick=True)

    def create(self, path: str) -> bool:
        """By a conditional create."""
        return not isinstance(self.client.put(self.object_key(path), b"1", "create"), Answer)

    def remove(self, path: str) -> None:
        """Remove an object."""
        self.remove_all([path])

    def remove_all(self, paths: Sequence[str]) -> int:
        """Remove objects, by bulk; how many, or 0 with one warning if that was not possible."""
        if isinstance(self.client.delete([*map(self.object_key, paths)]), Answer):
            self.warn("remove", "objects could not be removed")
            return 0
        return len(paths)

    def head(self, path: str) -> tuple[bytes, Any] | Answer:
        """The first bytes of an object, as many as a lease has, and its tag."""
        found = fetch(self.client, self.object_key(path), range=(0, HEADER.size))
        return found if isinstance(found, Answer) else (bytes(found[0]), found[1])

    def token_at(self, path: str) -> bytes | None:
        """The token of the entry at *path*, or None."""
        found = self.head(path)
        return None if isinstance(found, Answer) else token_of(found[0])

    def lease_at(self, path: str) -> LeaseRecord | None:
        """The lease at *path*, or None where there is an entry, nothing, or no answer."""
        found = self.head(path)
        return None if isinstance(found, Answer) else LeaseRecord.parse(*found)

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
        answers = put(key, b"2", "create"), put(key, b"3", NO_TAG)
        self.client.delete([key])
        if Answer.FAILED in answers:
            return None
        kept = answers == (Answer.TAKEN, Answer.TAKEN)
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
