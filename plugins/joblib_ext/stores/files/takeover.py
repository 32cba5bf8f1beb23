"""Taking a dead owner's lease away, so that one process does, however many judge it dead.

A rename moves whatever stands at a path. Of two that both saw the dead lease, the slower would
move the fresh lease of the faster, and a third would find the path empty for a moment. So the
right to remove comes first: a takeover lock, a link under a name that follows from the lease's
path and token. Only one link to a name succeeds. Whoever has the takeover lock looks at the path
again; as long as the dead lease stands there, nobody else may move it.

A takeover lock is a lease in its turn: that of an owner who died before it removed anything is
passed over by a takeover lock on the takeover lock.
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

_DEEPEST = 16
"""So many owners in a row would have to die between two system calls."""

_NO_ANSWER = frozenset({errno.EIO, errno.ESTALE})
"""After these nothing is known of others: where they last, waiting for others would too."""

_removing: dict[str, int] = {}
"""Threads of one process write the same token; who of them is at a path stands here."""

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
        is_dead: judges the owners of takeover locks.
    """
    path = slot.path
    with _alone_at(path) as alone:
        takeover_lock = _takeover_lock(store, path, record, is_dead) if alone else Refusal.BY_OTHERS
        if isinstance(takeover_lock, Refusal):
            return takeover_lock
        taken: Lease | Refusal = Refusal.NOT_POSSIBLE
        try:
            try:
                taken = _remove(store, path, record) or acquire(store, slot)
            finally:
                _drop(takeover_lock)
        except BaseException:
            if isinstance(taken, Lease):
                taken.release()  # interrupted: nobody will compute under it
            raise
        return taken


def _is_known_dead(record: LeaseRecord) -> bool:
    return record.owner() is Liveness.DEAD


def remove_dead(
    store: EntryFiles,
    path: str,
    record: LeaseRecord,
    is_dead: Callable[[LeaseRecord], bool] = _is_known_dead,
) -> bool:
    """Take a dead owner's lease away; False where somebody else is at it, or it could not be."""
    with _alone_at(path) as alone:
        takeover_lock = _takeover_lock(store, path, record, is_dead) if alone else Refusal.BY_OTHERS
        if isinstance(takeover_lock, Refusal):
            return False
        try:
            return _remove(store, path, record) is None
        finally:
            _drop(takeover_lock)


@contextlib.contextmanager
def _alone_at(path: str) -> Iterator[bool]:
    me = threading.get_ident()
    alone = _removing.setdefault(path, me) == me
    try:
        yield alone
    finally:
        if alone:
            _removing.pop(path, None)


def is_takeover_lock(name: str) -> bool:
    """Whether a file name is that of a takeover lock."""
    return name.startswith(_STEM) and name.endswith(TEMP_SUFFIX)


def takeover_locks_of(path: str, record: LeaseRecord) -> Iterator[tuple[str, LeaseRecord | None]]:
    """The paths where a right to remove *record* can stand, and what stands there.

    While the lease stands none of them may go: two could then have the right. That of a dead owner
    may not either: somebody can have passed it over and be at work.
    """
    found: LeaseRecord | None = record
    for _ in range(_DEEPEST):
        if found is None:
            return
        takeover_lock = _name(path, found.token)
        found = read_record(takeover_lock)
        yield takeover_lock, found


def _takeover_lock(
    store: EntryFiles, path: str, record: LeaseRecord, is_dead: Callable[[LeaseRecord], bool]
) -> str | Refusal:
    """The path of the takeover lock that lets us remove *record*, or why there is none."""
    try:
        return _win_lock(store, path, record, is_dead)
    except OSError:
        return Refusal.NOT_POSSIBLE


def _win_lock(
    store: EntryFiles, path: str, record: LeaseRecord, is_dead: Callable[[LeaseRecord], bool]
) -> str | Refusal:
    source = source_of(store.layout)
    token, stale = record.token, ""
    for _ in range(_DEEPEST):
        takeover_lock, origin = _name(path, token), source.ready(stale=stale)
        try:
            _link(origin, takeover_lock, source.record.token)
        except OSError as error:
            if error.errno not in AMBIGUOUS:
                raise
            found = read_record(takeover_lock)
            if found is None:
                if is_gone(origin):
                    stale = origin
                elif error.errno not in _NO_ANSWER:
                    return Refusal.BY_OTHERS  # it is done, or about to be; the next look tells
                continue
            if found.token != source.record.token:
                if not is_dead(found):
                    return Refusal.BY_OTHERS
                token = found.token
                continue
            store.events.note("lost-reply", takeover_lock)
        return takeover_lock
    return Refusal.NOT_POSSIBLE


def _link(origin: str, takeover_lock: str, token: bytes) -> None:
    """Link; where that is interrupted, what it may have made goes: its owner lives on."""
    try:
        os.link(origin, takeover_lock)
    except BaseException as error:
        if not isinstance(error, OSError):
            found = read_record(takeover_lock)
            if found is not None and found.token == token:
                _drop(takeover_lock)
        raise


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


def _drop(takeover_lock: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(takeover_lock)  # noqa: PTH108  # texts throughout
