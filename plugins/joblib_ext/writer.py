"""Writing results: what happens between a computed value and its entry, and every trouble in it."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Mapping
from pickle import PicklingError
from typing import Any

from joblib._store_backends import CacheWarning

from joblib_ext.calls import Call
from joblib_ext.entries.entry import Entry, parse_header
from joblib_ext.entries.large_entry import LargeEntry
from joblib_ext.entries.metadata import NAMESPACE
from joblib_ext.entries.payload import dump_body, total
from joblib_ext.stores.files.store import Address, Store

__all__ = ["Writer"]

_REMEMBERED = 128
_REMEMBERED_BYTES = 1 << 16
"""The last small results are kept in memory, 8 MiB at most: a reference from `call_and_shelve` can
then be read although the entry could not be written, or somebody evicted it meanwhile."""


class Writer:
    """Writes the entries of one store; nothing it meets is raised into the user's call."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.recent: deque[tuple[str, bytes]] = deque(maxlen=_REMEMBERED)

    def serialise(self, item: object) -> tuple[list[Any], int] | None:
        """The body of *item*, or None with a warning, as joblib gives it."""
        try:
            return dump_body(item)
        except PicklingError as error:
            warnings.warn(
                "Unable to cache to disk: failed to pickle output. In version 1.5 this will raise"
                f" an exception. Exception: {error}.",
                FutureWarning,
                stacklevel=4,
            )
        except Exception as error:  # noqa: BLE001  # a value's own pickling raises what it likes
            warnings.warn(
                f"Unable to cache to disk: the result cannot be stored. Exception: {error}.",
                CacheWarning,
                stacklevel=4,
            )
        return None

    def finish(self, call: Call, metadata: Mapping[str, Any]) -> None:
        """Publish the pending result of *call* in place of its claim."""
        pending, call.pending = call.pending, None
        if pending is None:
            return
        if call.claim is not None and call.claim.is_lost():
            self.store.events.note("conflict", call.path)  # computed twice; both values are right
        done = self.write(call.path, call.address, call.home, pending, metadata)
        if not done:
            self._give_up(call)
        elif call.claim is not None:
            # Not before the entry stands: another thread would take the claim there for its own.
            call.claim.stop()
            call.claim = None

    @staticmethod
    def _give_up(call: Call) -> None:
        from joblib_ext.stores.files.lease import release

        claim, call.claim = call.claim, None
        if claim is not None:
            release(claim)

    def write(
        self,
        path: str,
        address: bytes,
        home: Address,
        body: tuple[Any, int],
        metadata: Mapping[str, Any],
    ) -> bool:
        """Write one entry; False, with one warning a process, where that is not possible."""
        notes = {"duration": 0.0, "input_args": {}, "time": time.time(), **metadata}
        notes[NAMESPACE] = home.namespace
        try:
            pieces, token = self.store.build(*body, notes, address)
            if len(pieces) == 1 and total(pieces) < _REMEMBERED_BYTES:
                self.recent.append((path, bytes(pieces[0])))
            self.store.publish(path, pieces, token, home)
        except OSError as error:
            self.store.events.warn_once(
                f"write {error.errno}",
                f"Unable to cache to disk: {error}. Results are computed and returned as usual.",
                error,
            )
            return False
        return True

    def add_metadata(
        self, path: str, address: bytes, home: Address, metadata: Mapping[str, Any]
    ) -> None:
        """Write an entry anew with other metadata: entries do not change."""
        found = self.store.look(path, address)
        if isinstance(found, (Entry, LargeEntry)):
            body = self.serialise(found.value())
            if body is not None:
                self.write(path, address, home, body, metadata)

    def recall(self, path: str) -> Entry | None:
        """A result that was written or read here lately, although its file is gone."""
        for known, data in reversed(self.recent):
            if known == path:
                header = parse_header(data)
                return Entry(data, header) if header is not None else None
        return None

    def forget(self, prefix: str) -> None:
        """Forget what was cleared on purpose."""
        for item in [item for item in list(self.recent) if item[0].startswith(prefix)]:
            try:
                self.recent.remove(item)
            except ValueError:
                continue
