"""A call on its way: what `_cached_call` of joblib holds on to until it ends, one way or another.

joblib keeps the answer of ``get_cached_func_info`` in a local variable of the call. When the call
ends, by returning or by the user's exception, that answer goes, and with it the lease.
"""

from __future__ import annotations

import contextlib
import time
import warnings
import weakref
from collections import deque
from collections.abc import Mapping, Sequence
from pickle import PicklingError
from typing import Any

from joblib._store_backends import CacheWarning

from joblib_ext.entries.entry import Entry, parse_header
from joblib_ext.entries.large_entry import LargeEntry
from joblib_ext.entries.metadata import NAMESPACE
from joblib_ext.entries.payload import Buffer, dump_body, total
from joblib_ext.stores.leases import Lease
from joblib_ext.stores.store import Slot, Store

_REMEMBERED = 128
_REMEMBERED_BYTES = 1 << 16
"""The last small results are kept in memory, 8 MiB at most: a reference from `call_and_shelve` can
then be read although the entry could not be written, or somebody evicted it meanwhile."""


class CallInfo(dict[str, str]):
    """What ``get_cached_func_info`` answers.

    Attributes:
        func_id: the function that is called. Set by whoever makes one, as each call does: a
            constructor would double its cost.
        call: set when the call has to compute.
    """

    __slots__ = ("call", "func_id")
    func_id: str
    call: Call


class Call:
    """A call that missed, with the lease under which it computes.

    Attributes:
        call_id: joblib's pair of function and arguments; the very tuple identifies the call.
        slot: where the entry goes, as decided when the call began.
        calls: where it can be looked up until it ends.
        pending: the result as bytes, between ``dump_item`` and ``store_metadata``.
        item: the result, for a memory-mapped reload that the store could not serve.
    """

    __slots__ = (
        "__weakref__",
        "call_id",
        "calls",
        "item",
        "lease",
        "pending",
        "slot",
        "writer",
    )

    def __init__(self, writer: Writer, call_id: Any, slot: Slot) -> None:
        self.writer, self.call_id, self.slot = writer, call_id, slot
        self.lease: Lease | None = None
        self.pending: tuple[Sequence[Buffer], int] | None = None
        self.item: tuple[Any] | None = None
        self.calls: Calls | None = None

    def release(self) -> None:
        """Give up the lease."""
        lease, self.lease = self.lease, None
        if lease is not None and lease.held:
            lease.release()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # an interpreter that ends takes modules away
            if self.calls is not None:
                self.calls.remove(self)
            self.release()


class Calls:
    """The calls on their way, by the tuple that identifies each; none is kept alive.

    A `weakref.WeakValueDictionary` does the same for three times the price.
    """

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: dict[int, weakref.ref[Call]] = {}

    def add(self, call: Call) -> Call:
        """Note *call*, until it ends."""
        call.calls = self
        self._known[id(call.call_id)] = weakref.ref(call)
        return call

    def get(self, call_id: object) -> Call | None:
        """The call that this very tuple stands for."""
        known = self._known.get(id(call_id))
        call = known() if known is not None else None
        return call if call is not None and call.call_id is call_id else None

    def remove(self, call: Call) -> None:
        """Forget *call*, which ends; its tuple lives until then, so that no other has its id."""
        known = self._known.get(id(call.call_id))
        if known is not None and known() in (None, call):  # a weak reference may be dead by now
            self._known.pop(id(call.call_id), None)


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
        """Publish the pending result of *call* in place of its lease."""
        pending, call.pending = call.pending, None
        if pending is None:
            return
        if call.lease is not None and call.lease.is_lost():
            # It was computed twice; both values are right.
            self.store.events.note("conflict", call.slot.path)
        done = self.write(call.slot, pending, metadata)
        if not done:
            call.release()
        elif call.lease is not None:
            # Not before the entry stands: another thread would take the lease there for its own.
            call.lease.stop()
            call.lease = None

    def write(self, slot: Slot, body: tuple[Any, int], metadata: Mapping[str, Any]) -> bool:
        """Write one entry; False, with one warning a process, where that is not possible."""
        notes = {"duration": 0.0, "input_args": {}, "time": time.time(), **metadata}
        notes[NAMESPACE] = slot.version.namespace
        try:
            pieces, token = self.store.build(*body, notes, slot.binding)
            if len(pieces) == 1 and total(pieces) < _REMEMBERED_BYTES:
                self.recent.append((slot.path, bytes(pieces[0])))
            self.store.publish(slot, pieces, token)
        except OSError as error:
            self.store.events.warn_once(
                f"write {error.errno}",
                f"Unable to cache to disk: {error}. Results are computed and returned as usual.",
                error,
            )
            return False
        return True

    def add_metadata(self, slot: Slot, metadata: Mapping[str, Any]) -> None:
        """Write an entry anew with other metadata: entries do not change."""
        found = self.store.look(slot)
        if isinstance(found, (Entry, LargeEntry)):
            body = self.serialise(found.value())
            if body is not None:
                self.write(slot, body, metadata)

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
