"""The leases that this process holds, and the thread that renews them, for every kind of store.

One process computes a key, and says so by a lease that it renews. The lease ends with the call,
however that ends: an entry takes its place, or it is released.
"""

from __future__ import annotations

import abc
import atexit
import threading
import time
from typing import Protocol

from joblib_ext.entries.lease_record import LeaseRecord
from mlops_ext.processes.forks import in_forked_child

# Four may be late, and the lease still holds.
_RENEWALS_A_LEASE = 5
# Those who wait look more often, and may be kept from it for a moment.
_SHOWN_S = 1.0
# The heartbeat thread sleeps on this long without leases: waking it costs more than a beat.
_IDLE_ROUNDS = 20


class Source(Protocol):
    """What is renewed while this process computes."""

    record: LeaseRecord

    def renew(self) -> None:
        """Say that the process lives; never raises OSError."""
        ...

    def forget(self) -> None:
        """After a fork: it belongs to the parent."""
        ...

    def close(self) -> None:
        """The process ends."""
        ...


class Lease(abc.ABC):
    """A lease that this process holds.

    Attributes:
        path: where the entry will stand.
        source: what is renewed while the call computes; leases of one process can share it.
        record: what the lease says.
        thread: the thread that computes.
        since: when it was taken, by the monotonic clock.
    """

    __slots__ = ("lease_s", "path", "record", "since", "source", "thread")

    def __init__(self, path: str, source: Source, lease_s: float) -> None:
        self.path, self.source, self.lease_s = path, source, lease_s
        self.record = source.record
        self.thread = threading.get_ident()
        self.since = time.monotonic()

    @abc.abstractmethod
    def is_lost(self) -> bool:
        """Whether somebody else has a lease or an entry in its place."""

    @abc.abstractmethod
    def remove(self) -> bool | None:
        """Take the lease away: True if it is gone, False if it was not there, None if refused.

        What says to those who wait that it ended without a result stays until `bury`.
        """

    @abc.abstractmethod
    def bury(self) -> None:
        """Take away what `remove` left; never raises OSError."""

    def release(self) -> None:
        """Give the lease up without an entry: the next one computes. Never raises OSError."""
        gone = self.remove()
        self.stop()  # only now: a thread that sees the lease before must not take it for its own
        if gone is None:
            _unreleased[self.path] = self
        elif gone:
            _ended.append((time.monotonic(), self))
        if gone is not False:
            _heart.start()

    def hold(self) -> bool:
        """Count it as ours, unless another thread of this process has the path."""
        return _held.setdefault(self.path, self) is self

    @property
    def held(self) -> bool:
        """Whether this process still counts it as its own."""
        return _held.get(self.path) is self

    def stop(self) -> None:
        """Count it as ours no more; what stands at the path stays."""
        if self.held:
            _held.pop(self.path, None)


_held: dict[str, Lease] = {}
_inherited: set[str] = set()
# Leases whose removal failed; the heartbeat tries again.
_unreleased: dict[str, Lease] = {}
# Leases that ended without a result, and when: what shows it goes after `_SHOWN_S`.
_ended: list[tuple[float, Lease]] = []
# What this process renews, by store.
sources: dict[str, Source] = {}


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
            idle = 0 if leases or _unreleased or _ended else idle + 1
            if idle > _IDLE_ROUNDS:
                with self._lock:
                    if not _held:
                        self._awake = False
                        return
            lease_s = min((lease.lease_s for lease in leases), default=1.0)
            time.sleep(lease_s / _RENEWALS_A_LEASE)
            for source in {lease.source for lease in leases if lease.held}:
                source.renew()
            _bury(time.monotonic() - _SHOWN_S)
            for path, lease in list(_unreleased.items()):
                if lease.remove() is not None:
                    _unreleased.pop(path, None)


_heart = _Heart()


def _bury(before: float) -> None:
    while _ended and _ended[0][0] <= before:
        _ended.pop(0)[1].bury()


@in_forked_child
def _after_fork() -> None:
    """The parent goes on with its leases; a child must neither renew them nor wait for them."""
    global _heart
    _inherited.update(_held)
    _held.clear()
    _unreleased.clear()
    _ended.clear()
    for source in list(sources.values()):
        source.forget()
    _heart = _Heart()


def _at_exit() -> None:
    for lease in list(_held.values()):
        lease.release()
    _bury(time.monotonic())
    for source in list(sources.values()):
        source.close()


atexit.register(_at_exit)


def held_by_this_process(path: str) -> Lease | None:
    """The lease that this process holds on *path*, or None."""
    return _held.get(path)


def inherited(path: str) -> bool:
    """Whether this process was forked by one that held a lease on *path*."""
    return path in _inherited


def keep_renewing() -> None:
    """Start the thread that renews, if it does not run."""
    _heart.start()
