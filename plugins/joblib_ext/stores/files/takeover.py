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
from collections.abc import Callable, Iterator
from functools import partial

from joblib_ext.entries.lease_record import LeaseRecord, own_record
from joblib_ext.stores.files.entry_files import EntryFiles
from joblib_ext.stores.files.folders import share
from joblib_ext.stores.files.lease import acquire, read_record, remove, stands
from joblib_ext.stores.files.moving import AMBIGUOUS, discard, link
from joblib_ext.stores.leases import Lease, Refusal
from joblib_ext.stores.store import Slot
from mlops_ext.files import TEMP_SUFFIX, temp_name, write_new
from mlops_ext.processes.identity import Liveness

_STEM = "takeover."

# Replies can be lost.
_TRIES = 3

# After these nothing is known of others: where they last, waiting for others would too.
_NO_ANSWER = frozenset({errno.EIO, errno.ESTALE})


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
    own, lock = own_record(store.options.lease_s), _name(path, record.token)
    try:
        yield _lock(store, lock, own, is_dead)
    finally:
        if stands(lock, own):
            discard(lock)


def _lock(
    store: EntryFiles, lock: str, own: LeaseRecord, is_dead: Callable[[LeaseRecord], bool]
) -> Refusal | None:
    """Take the takeover lock, which names *own*: None, or why not."""
    for _ in range(_TRIES):
        origin = f"{lock.rpartition('/')[0]}/{temp_name('takeover')}"
        try:
            write_new(origin, [own.pack()])
            share(origin, store.group)
            trouble = link(origin, lock, partial(stands, record=own), store.events)
        except OSError as error:
            trouble = error
        finally:
            discard(origin)
        if trouble is None:
            return None
        if trouble.errno not in AMBIGUOUS:
            break
        if (found := read_record(lock)) is not None:
            return Refusal.NOT_POSSIBLE if is_dead(found) else Refusal.BY_OTHERS
        if trouble.errno not in _NO_ANSWER:
            return Refusal.BY_OTHERS  # it is done, or about to be; the next look tells
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
