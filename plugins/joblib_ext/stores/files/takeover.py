"""Taking a dead owner's claim away, so that one process does, however many judge it dead.

A rename moves whatever stands at a path. Of two that both saw the dead claim, the slower would
move the fresh claim of the faster, and a third would find the path empty for a moment. So the
right to remove comes first: a ticket, a link under a name that follows from the claim's path and
token. Only one link to a name succeeds. Whoever has the ticket looks at the path again; as long
as the dead claim stands there, nobody else may move it.

A ticket is a claim in its turn: that of an owner who died before it removed anything is passed
over by a ticket on the ticket.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterator

from joblib_ext.entries.lease_record import ClaimRecord, Owner
from joblib_ext.stores.files.lease import Claim, Taken, is_gone, read_record, release, remove, take
from joblib_ext.stores.files.lease_source import source_of
from joblib_ext.stores.files.store import AMBIGUOUS, Address, Store
from mlops_ext.files import TEMP_SUFFIX
from mlops_ext.processes.forks import in_forked_child

_STEM = "takeover."

_DEEPEST = 16
"""So many owners in a row would have to die between two system calls."""

_NO_ANSWER = frozenset({errno.EIO, errno.ESTALE})
"""After these nothing is known of others: where they last, waiting for others would too."""

_removing: dict[str, int] = {}
"""Threads of one process write the same token; who of them is at a path stands here."""

in_forked_child(_removing.clear)  # those threads are the parent's


def take_over(
    store: Store,
    path: str,
    record: ClaimRecord,
    home: Address,
    is_dead: Callable[[ClaimRecord], bool],
) -> Claim | Taken:
    """A claim in place of that of a dead owner, which is *record*.

    Args:
        store: the store.
        path: where the claim stands.
        record: the claim.
        home: the function's version.
        is_dead: judges the owners of tickets.
    """
    with _alone_at(path) as alone:
        ticket = _ticket(store, path, record, is_dead) if alone else Taken.BY_OTHERS
        if isinstance(ticket, Taken):
            return ticket
        taken: Claim | Taken = Taken.NOT_POSSIBLE
        try:
            try:
                taken = _remove(store, path, record) or take(store, path, home)
            finally:
                _drop(ticket)
        except BaseException:
            if isinstance(taken, Claim):
                release(taken)  # interrupted: nobody will compute under it
            raise
        return taken


def _is_known_dead(record: ClaimRecord) -> bool:
    return record.owner() is Owner.DEAD


def remove_dead(
    store: Store,
    path: str,
    record: ClaimRecord,
    is_dead: Callable[[ClaimRecord], bool] = _is_known_dead,
) -> bool:
    """Take a dead owner's claim away; False where somebody else is at it, or it could not be."""
    with _alone_at(path) as alone:
        ticket = _ticket(store, path, record, is_dead) if alone else Taken.BY_OTHERS
        if isinstance(ticket, Taken):
            return False
        try:
            return _remove(store, path, record) is None
        finally:
            _drop(ticket)


@contextlib.contextmanager
def _alone_at(path: str) -> Iterator[bool]:
    me = threading.get_ident()
    alone = _removing.setdefault(path, me) == me
    try:
        yield alone
    finally:
        if alone:
            _removing.pop(path, None)


def is_ticket(name: str) -> bool:
    """Whether a file name is that of a ticket."""
    return name.startswith(_STEM) and name.endswith(TEMP_SUFFIX)


def tickets_of(path: str, record: ClaimRecord) -> Iterator[tuple[str, ClaimRecord | None]]:
    """The paths where a right to remove *record* can stand, and what stands there.

    While the claim stands none of them may go: two could then have the right. That of a dead owner
    may not either: somebody can have passed it over and be at work.
    """
    found: ClaimRecord | None = record
    for _ in range(_DEEPEST):
        if found is None:
            return
        ticket = _name(path, found.token)
        found = read_record(ticket)
        yield ticket, found


def _ticket(
    store: Store, path: str, record: ClaimRecord, is_dead: Callable[[ClaimRecord], bool]
) -> str | Taken:
    """The path of the ticket that gives the right to remove *record*, or why there is none."""
    try:
        return _win_ticket(store, path, record, is_dead)
    except OSError:
        return Taken.NOT_POSSIBLE


def _win_ticket(
    store: Store, path: str, record: ClaimRecord, is_dead: Callable[[ClaimRecord], bool]
) -> str | Taken:
    source = source_of(store.layout)
    token, stale = record.token, ""
    for _ in range(_DEEPEST):
        ticket, origin = _name(path, token), source.ready(stale=stale)
        try:
            _link(origin, ticket, source.record.token)
        except OSError as error:
            if error.errno not in AMBIGUOUS:
                raise
            found = read_record(ticket)
            if found is None:
                if is_gone(origin):
                    stale = origin
                elif error.errno not in _NO_ANSWER:
                    return Taken.BY_OTHERS  # it is done, or about to be; the next look tells
                continue
            if found.token != source.record.token:
                if not is_dead(found):
                    return Taken.BY_OTHERS
                token = found.token
                continue
            store.events.note("lost-reply", ticket)
        return ticket
    return Taken.NOT_POSSIBLE


def _link(origin: str, ticket: str, token: bytes) -> None:
    """Link; where that is interrupted, what it may have made goes: its owner lives on."""
    try:
        os.link(origin, ticket)
    except BaseException as error:
        if not isinstance(error, OSError):
            found = read_record(ticket)
            if found is not None and found.token == token:
                _drop(ticket)
        raise


def _name(path: str, token: bytes) -> str:
    """A name beside *path* that follows from it and the token of the dead."""
    digest = hashlib.sha256(os.fsencode(path.rpartition("/")[2]) + b"\0" + token).hexdigest()[:32]
    return f"{path[: path.rindex('/') + 1]}{_STEM}{digest}{TEMP_SUFFIX}"


def _remove(store: Store, path: str, record: ClaimRecord) -> Taken | None:
    """Remove the dead claim; None where that was done, else why not."""
    found = read_record(path)
    if found is None or (found.token, found.beat) != (record.token, record.beat):
        return Taken.BY_OTHERS
    removed = remove(path, record)
    if not removed:
        return Taken.NOT_POSSIBLE if removed is None else Taken.BY_OTHERS
    store.events.note("takeover", path)
    return None


def _drop(ticket: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(ticket)  # noqa: PTH108  # texts throughout
