"""Taking a dead owner's lease away, so that one process does, however many judge it dead.

A rename moves whatever stands at a path. Of two that both saw the dead lease, the slower would
move the fresh lease of the faster, and a third would find the path empty for a moment. So the
right to remove comes first: a takeover lock, a link under a name that follows from the lease's
path and token. Only one link to a name succeeds. Whoever has the takeover lock looks at the path
again; as long as the dead lease stands there, nobody else may move it.

Whoever dies between taking the lock and removing the lease leaves both behind. Then nobody takes
over: whoever comes computes without a lease, and the result takes the lease's place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator

from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.stores.files.entry_files import AMBIGUOUS, EntryFiles
from joblib_ext.stores.files.lease import acquire, is_gone, read_record, remove
from joblib_ext.stores.files.lease_source import source_of
from joblib_ext.stores.leases import Lease
from joblib_ext.stores.store import Refusal, Slot
from mlops_ext.files import TEMP_SUFFIX
from mlops_ext.processes.forks import in_forked_child
from mlops_ext.processes.identity import Liveness

_STEM = "takeover."

# A reply can be lost, or the file to link from reaped.
_TRIES = 3

# After these nothing is known of others: where they last, waiting for others would too.
_NO_ANSWER = frozenset({errno.EIO, errno.ESTALE})

# Threads of one process write the same token; who of them is at a path stands here.
_removing: dict[str, int] = {}

in_forked_child(_removing.clear)  # those threads are the parent's


def take_over(
    store: EntryFiles,
    slot: Slot,
    record: LeaseRecord,
    is_dead: Callable[[LeaseRecord], bool],
) -> Lease | Refusal:
    """A lease in place of that of a dead owner, which is *record*.

    Args:
        store: the store.
        slot: where the lease stands.
        record: the lease.
        is_dead: judges the owner of the takeover lock.
    """
    taken: Lease | Refusal = Refusal.NOT_POSSIBLE
    try:
        with _locked(store, slot.path, record, is_dead) as refusal:
            taken = refusal or _remove(store, slot.path, record) or acquire(store, slot)
    except BaseException:
        if isinstance(taken, Lease):
            taken.release()  # interrupted: nobody will compute under it
        raise
    return taken


def remove_dead(store: EntryFiles, path: str, record: LeaseRecord) -> bool:
    """Take a dead owner's lease away; False where somebody else is at it, or it could not be."""
    with _locked(store, path, record, lambda other: other.owner() is Liveness.DEAD) as refusal:
        return refusal is None and _remove(store, path, record) is None


@contextlib.contextmanager
def _locked(
    store: EntryFiles, path: str, record: LeaseRecord, is_dead: Callable[[LeaseRecord], bool]
) -> Iterator[Refusal | None]:
    """Hold the takeover lock of *record*, or say why not."""
    me = threading.get_ident()
    if _removing.setdefault(path, me) != me:
        yield Refusal.BY_OTHERS
        return
    lock = _name(path, record.token)
    refusal: Refusal | None = None  # where taking it is interrupted, it may have been taken
    try:
        refusal = _lock(store, lock, is_dead)
        yield refusal
    finally:
        if refusal is None and _is_own(store, lock):
            with contextlib.suppress(OSError):
                os.unlink(lock)  # noqa: PTH108  # texts throughout
        _removing.pop(path, None)


def _is_own(store: EntryFiles, lock: str) -> bool:
    found, own = read_record(lock), source_of(store).record
    return found is not None and found.token == own.token


def _lock(store: EntryFiles, lock: str, is_dead: Callable[[LeaseRecord], bool]) -> Refusal | None:
    """Take the takeover lock: None, or why not."""
    source, stale = source_of(store), ""
    for _ in range(_TRIES):
        origin = ""
        try:
            origin = source.ready(stale=stale)
            os.link(origin, lock)
        except OSError as error:
            if error.errno not in AMBIGUOUS:
                break
            found = read_record(lock)
            if found is not None and found.token == source.record.token:
                store.events.note("lost-reply", lock)
                return None
            if found is not None:
                return Refusal.NOT_POSSIBLE if is_dead(found) else Refusal.BY_OTHERS
            if origin and is_gone(origin):
                stale = origin
            elif error.errno not in _NO_ANSWER:
                return Refusal.BY_OTHERS  # it is done, or about to be; the next look tells
        else:
            return None
    return Refusal.NOT_POSSIBLE


def _name(path: str, token: bytes) -> str:
    """A name beside *path* that follows from it and the token of the dead."""
    digest = hashlib.sha256(os.fsencode(path.rpartition("/")[2]) + b"\0" + token).hexdigest()[:32]
    return f"{path[: path.rindex('/') + 1]}{_STEM}{digest}{TEMP_SUFFIX}"


def _remove(store: EntryFiles, path: str, record: LeaseRecord) -> Refusal | None:
    """Remove the dead lease; None where that was done, else why not."""
    found = read_record(path)
    if found is None or (found.token, found.renewals) != (record.token, record.renewals):
        return Refusal.BY_OTHERS
    removed = remove(path, record)
    if not removed:
        return Refusal.NOT_POSSIBLE if removed is None else Refusal.BY_OTHERS
    store.events.note("takeover", path)
    return None
