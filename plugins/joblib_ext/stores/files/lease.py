"""Leases as files: acquired by a link, told apart by a token.

A lease stands under the name that the entry will have. So one atomic operation, link, finds both
an entry and a lease that a client's cache hides; publishing replaces the lease; and a reader
learns with one open what there is.
"""

from __future__ import annotations

import errno
import time
from functools import partial

from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.stores.files.entry_files import EntryFiles
from joblib_ext.stores.files.lease_source import LeaseSource, source_of
from joblib_ext.stores.files.moving import AMBIGUOUS, discard, link, set_aside
from joblib_ext.stores.files.statx import fresh_mtime
from joblib_ext.stores.leases import Lease, Refusal
from joblib_ext.stores.reader import read_head
from joblib_ext.stores.store import Slot
from mlops_ext.files import TEMP_SUFFIX, temp_name

# Each level of folders above a first entry can cost one, where replies are lost.
_TRIES = 12
_ENDED = "ended."
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV})


class FileLease(Lease):
    """A lease that is a hard link to the file of its source."""

    __slots__ = ()

    def is_lost(self) -> bool:
        """Whether somebody else has a lease or an entry in its place.

        Looked up only after a lease: before, nobody can have counted the owner as dead.
        """
        if time.monotonic() - self.since <= self.lease_s:
            return False
        found = read_record(self.path)
        if found is not None:
            return found.token != self.record.token
        return EntryFiles.token_at(self.path) is not None

    def remove(self) -> bool | None:
        """Move the link to where those who wait see that the lease ended, if it is this lease's."""
        self.bury()  # to rename a link onto another one to the same file does nothing
        return remove(self.path, self.record, ended_name(self.path, self.record))

    def bury(self) -> None:
        """Remove the link."""
        discard(ended_name(self.path, self.record))


def acquire(store: EntryFiles, slot: Slot) -> Lease | Refusal:
    """A lease on *slot*, if that is free.

    Leans on: a link that fails where the name is taken. A lost reply is recognised by the token
    at the path, then or, where a cache hides it, as soon as it shows (see `resume`).
    """
    source = source_of(store)
    lease = FileLease(slot.path, source)
    return lease.take(lambda: _link(store, slot, source, lease))


def _link(store: EntryFiles, slot: Slot, source: LeaseSource, lease: Lease) -> bool | None:
    """Link the lease to its place: True if it stands there, False if something else does."""
    origin = ""
    for attempt in range(_TRIES):  # the first failure mostly is a folder's
        origin = source.ready(stale=origin if attempt > 1 and is_gone(origin) else "")
        lease.record = source.record
        is_own = partial(stands, record=lease.record)
        trouble = link(origin, slot.path, is_own, store.events)
        if trouble is None:
            return True
        if trouble.errno in _NO_LINKS:
            store.events.warn_once(
                "links",
                f"this file system has no hard links ({trouble}); several processes may compute"
                " the same result",
            )
        if trouble.errno not in AMBIGUOUS:
            return None
        if trouble.errno == errno.EEXIST:
            return False
        store.make_folder(slot.path[: slot.path.rindex("/") + 1], slot.version)
    return None


def is_gone(path: str) -> bool:
    """Whether the file server has no such file, whatever a cache says."""
    try:
        fresh_mtime(path)
    except OSError as error:
        return error.errno == errno.ENOENT
    return False


def resume(store: EntryFiles, slot: Slot, record: LeaseRecord) -> Lease | None:
    """This process's own lease that it does not know of: the reply to the link was lost."""
    path, source = slot.path, source_of(store)
    if record.token in source.former:
        remove(path, record)  # it would never be renewed again
    if not source.path or record.token != source.record.token:
        return None
    # Another thread may have had this lease when *record* was read, and have published since.
    taken = FileLease(path, source).take(lambda: stands(path, record))
    if not isinstance(taken, Lease):
        return None
    store.events.note("lost-reply", path)
    return taken


def read_record(path: str) -> LeaseRecord | None:
    """The lease at *path*, or None where there is an entry, nothing, or no answer."""
    return LeaseRecord.parse(read_head(path))


def ended_name(path: str, record: LeaseRecord) -> str:
    """A name beside *path*, which shows that a lease ended without a result."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/{_ENDED}{name[:16]}.{record.token.hex()}{TEMP_SUFFIX}"


def stands(path: str, record: LeaseRecord) -> bool:
    """Whether *path* holds that very lease."""
    found = read_record(path)
    return found is not None and found.token == record.token


def remove(path: str, record: LeaseRecord, aside: str = "") -> bool | None:
    """Move a lease away, and leave it *aside* if that is given.

    True where it is gone; False where something else stands there; None where it could not be
    moved.
    """
    if not stands(path, record):
        return False
    target = aside or path[: path.rindex("/") + 1] + temp_name("released")
    moved = set_aside(path, target, lambda found: stands(found, record))
    if not aside:
        discard(target)
    return None if isinstance(moved, OSError) else moved
