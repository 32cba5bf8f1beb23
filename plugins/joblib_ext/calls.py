"""A call on its way, and how what it computed is written.

joblib tells calls apart by a pair: the function's name and a digest of the arguments. `CallId` is
that pair with the version of the code; while the call computes, with its lease.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from pickle import PicklingError
from typing import Any

from joblib._store_backends import CacheWarning

from joblib_ext.entries.entry import Entry, build, parse_header
from joblib_ext.entries.payload import dump_body, total
from joblib_ext.stores.events import tell
from joblib_ext.stores.kinds import Store
from joblib_ext.stores.leases import Lease
from joblib_ext.stores.store import Slot

# The last small results are kept in memory, 8 MiB at most: a reference from `call_and_shelve` can
# then be read although the store fails to, or somebody evicted the entry meanwhile.
_REMEMBERED = 128
_REMEMBERED_BYTES = 1 << 16


class CallId(tuple[str, str]):  # noqa: SLOT001  # a tuple can have no slots of its own
    """The pair of function and arguments by which joblib knows a call.

    Attributes:
        namespace: the version of the function's code.
        slot: where the entry goes, while the call computes.
        lease: the lease under which it computes.
        is_forced: whether it computes without having looked.
    """

    namespace: str
    slot: Slot
    lease: Lease | None = None
    is_forced: bool = False

    def release(self) -> None:
        """Give up the lease."""
        lease, self.lease = self.lease, None
        if lease is not None and lease.held:
            lease.release()

    def __reduce__(self) -> tuple[Any, ...]:
        return call_id, (*self, self.namespace)


def call_id(func_id: str, arguments: str, namespace: str) -> CallId:
    """The pair, with the version."""
    made = CallId((func_id, arguments))
    made.namespace = namespace
    return made


def call_at(slot: Slot) -> CallId:
    """A call on its way, whose result goes to *slot*."""
    made = call_id(slot.version.func_id, slot.arguments, slot.version.namespace)
    made.slot = slot
    return made


class Writer:
    """Writes the entries of one store; nothing it meets is raised into the user's call."""

    def __init__(self, store: Store, tell: Callable[[], None]) -> None:
        self.store, self._tell = store, tell
        self.recent: deque[tuple[str, bytes]] = deque(maxlen=_REMEMBERED)

    def serialise(self, item: object) -> tuple[list[Any], int] | None:
        """The body of *item*, or None with a warning, as joblib gives it."""
        try:
            return dump_body(item)
        except Exception as error:  # noqa: BLE001  # a value's own pickling raises what it likes
            category, what = CacheWarning, "the result cannot be stored"
            if isinstance(error, PicklingError):
                category, what = FutureWarning, "failed to pickle output"
            tell(f"Unable to cache to disk: {what}. Exception: {error}.", category, stacklevel=5)
        return None

    def finish(self, call: CallId, body: tuple[Any, int], metadata: Mapping[str, Any]) -> bool:
        """Publish a result in place of the call's lease; False where that is not possible."""
        lease = call.lease
        if lease is not None and lease.is_lost():
            # It was computed twice; both values are right.
            self.store.events.note("conflict", call.slot.path)
        if not self.write(call.slot, body, metadata):
            return False
        if lease is not None:
            # Not before the entry stands: another thread would take the lease there for its own.
            lease.stop()
            call.lease = None
        return True

    def write(self, slot: Slot, body: tuple[Any, int], metadata: Mapping[str, Any]) -> bool:
        """Write one entry; False, with one warning a process, where that is not possible."""
        if self.store.options.key_missing:
            return False
        notes = {"duration": 0.0, "input_args": {}, "time": time.time(), **metadata}
        try:
            pieces, token = build(*body, notes, slot.binding, **self.store.options.building)
            if total(pieces) < _REMEMBERED_BYTES:
                pieces = [b"".join(pieces)]
                self.recent.append((slot.path, bytes(pieces[0])))
            self.store.publish(slot, pieces, token)
            self._tell()
        except Exception as error:  # noqa: BLE001  # the result was computed: it is what counts
            self.store.events.warn_once(
                f"write {getattr(error, 'errno', type(error))}",
                f"Unable to cache to disk: {error}. Results are computed and returned as usual.",
                error,
            )
            return False
        return True

    def recall(self, path: str) -> Entry | None:
        """A result that was written here lately, although its file cannot be read."""
        for known, data in reversed(self.recent):
            header = parse_header(data) if known == path else None
            if header is not None:
                return Entry(data, header)
        return None

    def forget(self, prefix: str) -> None:
        """Forget what was cleared on purpose."""
        kept = [item for item in list(self.recent) if not item[0].startswith(prefix)]
        self.recent = deque(kept, maxlen=_REMEMBERED)
