"""Leases: one process computes a key, and says so by a heartbeat.

A lease stands under the name that the entry will have. So one atomic operation, link, finds both
an entry and a lease that a client's cache hides; publishing replaces the lease; and a reader
learns with one open what there is.
"""

from __future__ import annotations

import atexit
import contextlib
import enum
import errno
import os
import sys
import threading
import time
from itertools import accumulate, chain, repeat, starmap
from operator import itemgetter
from types import FrameType
from typing import Any

from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.stores.files.lease_source import LeaseSource, all_sources, source_of
from joblib_ext.stores.files.statx import fresh_path
from joblib_ext.stores.files.store import AMBIGUOUS, READ, CodeVersion, Store
from mlops_ext.files import temp_name
from mlops_ext.processes.forks import in_forked_child

_TRIES = 12
"""Each level of folders above a first entry can cost one, where replies are lost."""
_RENEWALS_A_LEASE = 5
"""Four may be late, and the lease still holds."""
_IDLE_ROUNDS = 20
"""The heartbeat thread sleeps on this long without leases: waking it costs more than a beat."""
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV})


class Taken(enum.Enum):
    """Why a lease was not taken."""

    BY_OTHERS = "somebody has a lease or an entry there"
    NOT_POSSIBLE = "the file system refused"


class Lease:
    """A lease that this process holds.

    Attributes:
        path: where the entry will stand.
        source: the file that the lease is a link to.
        record: what the lease says.
        thread: the thread that computes.
        frame: identity of joblib's frame that computes, or 0 where it is not known.
        since: when it was taken, by the monotonic clock.
    """

    __slots__ = ("frame", "lease_s", "path", "record", "since", "source", "thread")

    def __init__(self, path: str, source: LeaseSource, lease_s: float) -> None:
        self.path, self.source, self.lease_s = path, source, lease_s
        self.record = source.record
        self.thread = threading.get_ident()
        self.frame = 0
        self.since = time.monotonic()

    def is_lost(self) -> bool:
        """Whether somebody else has a lease or an entry in its place.

        Looked up only after a lease: before, nobody can have counted the owner as dead.
        """
        if time.monotonic() - self.since <= self.lease_s:
            return False
        found = read_record(self.path)
        if found is not None:
            return found.token != self.record.token
        return Store.token_at(self.path) is not None

    @property
    def held(self) -> bool:
        """Whether this process still counts it as its own."""
        return _held.get(self.path) is self

    def note_frame(self) -> None:
        """Remember joblib's frame that computes under this lease, to see when it has ended."""
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # joblib does not say who calls
        while frame is not None and frame.f_code.co_name != "_cached_call":
            frame = frame.f_back
        self.frame = id(frame) if frame is not None else 0

    def stop(self) -> None:
        """Count it as ours no more; what stands at the path stays."""
        if self.held:
            _held.pop(self.path, None)


_held: dict[str, Lease] = {}
_inherited: set[str] = set()
_unreleased: dict[str, LeaseRecord] = {}
"""Leases whose removal failed; the heartbeat tries again."""


class _Heart:
    """The thread that beats for this process; it starts with the first lease."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._awake = False

    def start(self) -> None:
        if self._awake:
            return
        with self._lock:
            if not self._awake:
                self._awake = True
                threading.Thread(target=self._run, name="mlops-ext-leases", daemon=True).start()

    def _run(self) -> None:
        idle = 0
        while True:
            leases = list(_held.values())
            idle = 0 if leases or _unreleased else idle + 1
            if idle > _IDLE_ROUNDS:
                with self._lock:
                    if not _held:
                        self._awake = False
                        return
            lease_s = min((lease.lease_s for lease in leases), default=1.0)
            time.sleep(lease_s / _RENEWALS_A_LEASE)
            for source in {lease.source for lease in leases if lease.held}:
                source.renew()
            _release_abandoned(leases)
            for path, record in list(_unreleased.items()):
                if remove(path, record) is not None:
                    _unreleased.pop(path, None)


_heart = _Heart()


def _release_abandoned(leases: list[Lease]) -> None:
    """Release leases whose call has ended while somebody keeps its exception, and so its frame."""
    judged = [(lease, lease.frame) for lease in leases if lease.frame and lease.held]
    if judged:
        running = _running_frames({lease.thread for lease, _ in judged})
        for lease, frame in judged:
            if frame not in running and lease.held:
                release(lease)


def _running_frames(threads: set[int]) -> set[int]:
    """Identities of all frames on the stacks of these threads."""
    found: set[int] = set()
    for thread in threads:
        stack = _stack(thread)
        found.update(map(id, stack))
        stack.clear()  # a frame that is kept keeps a call's result
    return found


def _stack(thread: int) -> list[FrameType]:
    """The frames of a running thread, innermost first; [] where it has ended.

    Taken without a bytecode in between, at which the thread might go on: a generator that yields
    then loses its ``f_back``, and everything below it would look as if it had ended.
    """
    now: Any = starmap(sys._current_frames, [()])  # noqa: SLF001  # the only way to see its stack
    frames: list[FrameType] = []
    with contextlib.suppress(KeyError, AttributeError):  # no such thread; the outermost frame
        frames.extend(accumulate(chain(map(itemgetter(thread), now), repeat("f_back")), getattr))
    return frames


@in_forked_child
def _after_fork() -> None:
    """The parent goes on with its leases; a child must neither beat for them nor wait for them."""
    global _heart
    _inherited.update(_held)
    _held.clear()
    _unreleased.clear()
    for source in all_sources():
        source.forget()
    _heart = _Heart()


def _at_exit() -> None:
    for lease in list(_held.values()):
        release(lease)
    for source in all_sources():
        source.remove()


atexit.register(_at_exit)


def held_by_this_process(path: str) -> Lease | None:
    """The lease that this process holds on *path*, or None."""
    return _held.get(path)


def inherited(path: str) -> bool:
    """Whether this process was forked by one that held a lease on *path*."""
    return path in _inherited


def take(store: Store, path: str, home: CodeVersion) -> Lease | Taken:
    """A lease on *path*, if that is free.

    Leans on: a link that fails where the name is taken. A lost reply is recognised by the token
    at the path, then or, where a cache hides it, as soon as it shows (see `adopt`).
    """
    source = source_of(store.layout)
    try:
        origin = source.ready()
    except OSError:
        return Taken.NOT_POSSIBLE  # writing the result will say why
    lease = Lease(path, source, store.options.lease_s)
    if _held.setdefault(path, lease) is not lease:
        return Taken.BY_OTHERS
    outcome: Lease | Taken = Taken.NOT_POSSIBLE
    try:
        for attempt in range(_TRIES):
            tried = _link(store, origin, lease)
            if tried is not None:
                outcome = tried
                break
            if attempt and is_gone(origin):
                origin = source.ready(stale=origin)
                lease.record = source.record
            store.make_folder(path[: path.rindex("/") + 1], home)
    except OSError:
        outcome = Taken.NOT_POSSIBLE
    except BaseException:
        release(lease)  # interrupted, perhaps when the link was made
        raise
    finally:
        if outcome is not lease:
            lease.stop()
    if outcome is lease:
        _heart.start()
    return outcome


def _link(store: Store, origin: str, lease: Lease) -> Lease | Taken | None:
    """The lease, why it was not taken, or None to try again."""
    try:
        os.link(origin, lease.path)
    except OSError as error:
        if error.errno in _NO_LINKS:
            store.events.warn_once(
                "links",
                f"this file system has no hard links ({error}); several processes may compute"
                " the same result",
            )
            return Taken.NOT_POSSIBLE
        if error.errno not in AMBIGUOUS:
            return Taken.NOT_POSSIBLE
        found = read_record(lease.path)
        if found is not None and found.token == lease.record.token:
            store.events.note("lost-reply", lease.path)
            return lease
        return Taken.BY_OTHERS if error.errno == errno.EEXIST else None
    return lease


def is_gone(path: str) -> bool:
    """Whether the file server has no such file, whatever a cache says."""
    try:
        fresh_path(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return False


def adopt(store: Store, path: str, record: LeaseRecord) -> Lease | None:
    """This process's own lease that it does not know of: the reply to the link was lost."""
    source = source_of(store.layout)
    if record.token in source.former:
        remove(path, record)  # it would never beat again
    if not source.path or record.token != source.record.token:
        return None
    lease = Lease(path, source, store.options.lease_s)
    if _held.setdefault(path, lease) is not lease:
        return None
    # Another thread may have had this lease when *record* was read, and have published since.
    found = read_record(path)
    if found is None or found.token != record.token:
        lease.stop()
        return None
    store.events.note("lost-reply", path)
    _heart.start()
    return lease


def read_record(path: str) -> LeaseRecord | None:
    """The lease at *path*, or None where there is an entry, nothing, or no answer."""
    with contextlib.suppress(OSError):
        return ask_record(path)
    return None


def ask_record(path: str) -> LeaseRecord | None:
    """The lease at *path*, or None where there is an entry.

    Raises:
        OSError: there is nothing, or no answer.
    """
    descriptor = os.open(path, READ)
    try:
        return LeaseRecord.parse(os.read(descriptor, 256))
    finally:
        with contextlib.suppress(OSError):  # what was read was read
            os.close(descriptor)


def release(lease: Lease) -> None:
    """Give the lease up without an entry: the next one computes. Never raises OSError."""
    gone = remove(lease.path, lease.record)
    lease.stop()  # only now: a thread that sees the file before must not take it for its own
    if gone is None:
        _unreleased[lease.path] = lease.record
        _heart.start()


def remove(path: str, record: LeaseRecord) -> bool | None:
    """Move a lease away and look at what was moved: anything but that lease is put back.

    True where it is gone, False where something else stands there, None where it could not be
    moved.
    """
    found = read_record(path)
    if found is None or found.token != record.token:
        return False
    quarantine = path[: path.rindex("/") + 1] + temp_name("released")
    refused = False
    try:
        os.rename(path, quarantine)  # noqa: PTH104  # texts throughout
    except OSError as error:
        refused = error.errno not in AMBIGUOUS or error.errno == errno.EIO
    moved = read_record(quarantine)
    if moved is None and not os.path.lexists(quarantine):
        return None if refused else False
    mine = moved is not None and moved.token == record.token
    if not mine:
        with contextlib.suppress(OSError):
            os.link(quarantine, path)
    with contextlib.suppress(OSError):
        os.unlink(quarantine)  # noqa: PTH108
    return mine
