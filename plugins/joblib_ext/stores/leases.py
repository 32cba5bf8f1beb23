"""The leases that this process holds, and the thread that renews them, for every kind of store.

One process computes a key, and says so by a lease that it renews. The lease ends with the call,
however that ends: an entry takes its place, or it is released.
"""

from __future__ import annotations

import abc
import atexit
import contextlib
import enum
import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from typing_extensions import Self

from joblib_ext.entries.lease_record import LeaseRecord
from mlops_ext.processes.forks import in_forked_child

log = logging.getLogger(__name__)

# Four may be late, and the lease still holds.
_RENEWALS_A_LEASE = 5
# Those who wait look more often, and may be kept from it for a moment.
_SHOWN_S = 1.0
# The shortest usual lease may begin meanwhile.
_IDLE_PAUSE_S = 0.2
# A process that was stopped for an hour must not take leases of hours.
_MOST_LEASES = 12


class Refusal(enum.Enum):
    """Why a lease was not acquired."""

    BY_OTHERS = "somebody has a lease or an entry there"
    NOT_POSSIBLE = "the store refused"


class Source(Protocol):
    """What is renewed while this process computes."""

    record: LeaseRecord

    def renew(self) -> None:
        """Say that the process lives; never raises OSError."""


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

    def __init__(self, path: str, source: Source) -> None:
        self.path, self.source, self.record = path, source, source.record
        self.lease_s = self.record.lease_s
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
            _keep_renewing()

    def take(self, attempt: Callable[[], bool | None]) -> Self | Refusal:
        """This lease, if *attempt* makes it stand in the store.

        Args:
            attempt: True if it stands, False if somebody else has the place, None or an OSError
                if the store refused, which writing the result will tell of.
        """
        if _held.setdefault(self.path, self) is not self:
            return Refusal.BY_OTHERS
        done: bool | None = None
        try:
            with contextlib.suppress(OSError):
                done = attempt()
        except BaseException:
            self.release()  # interrupted, perhaps when it was made
            raise
        finally:
            if not done:
                self.stop()
        if done:
            _keep_renewing()
            return self
        return Refusal.NOT_POSSIBLE if done is None else Refusal.BY_OTHERS

    @property
    def held(self) -> bool:
        """Whether this process still counts it as its own."""
        return _held.get(self.path) is self

    def stop(self) -> None:
        """Stop holding the lease; the file at its path stays."""
        if self.held:
            _held.pop(self.path, None)


_held: dict[str, Lease] = {}
_inherited: set[str] = set()
# Leases whose removal failed; the heartbeat tries again.
_unreleased: dict[str, Lease] = {}
# Leases that ended without a result, and when: what shows it goes after `_SHOWN_S`.
_ended: list[tuple[float, Lease]] = []
# What this process renews, by store.
sources: dict[str, Any] = {}


_lock = threading.Lock()
_is_beating = False
# So long a lease has to be, after the interpreter was seen to be held.
_longest_s = 0.0


def long_enough(lease_s: float) -> float:
    """The lease of a process whose options say *lease_s*: longer, where it once was silent."""
    return max(lease_s, min(_longest_s, _MOST_LEASES * lease_s))


def _keep_renewing() -> None:
    """Start the thread that renews, if it does not run; it ends with the process."""
    global _is_beating
    with _lock:
        if not _is_beating:
            _is_beating = True
            threading.Thread(target=_beat, name="mlops-ext-leases", daemon=True).start()


def _beat() -> None:
    renewed = time.monotonic()
    while True:
        held = list(_held.values())
        pause_s = min((lease.lease_s / _RENEWALS_A_LEASE for lease in held), default=_IDLE_PAUSE_S)
        time.sleep(pause_s)
        # Code may also have taken the interpreter in the middle of the last renewal.
        silent_s, renewed = time.monotonic() - renewed, time.monotonic()
        if held:
            _note_silence(silent_s, pause_s * _RENEWALS_A_LEASE)
        for source in {lease.source for lease in held if lease.held}:
            source.renew()
        _bury(time.monotonic() - _SHOWN_S)
        for path, lease in list(_unreleased.items()):
            if lease.remove() is not None:
                _unreleased.pop(path, None)


def _note_silence(silent_s: float, lease_s: float) -> None:
    """Take longer leases from now on, if this thread was kept from renewing them in time."""
    global _longest_s
    if silent_s > max(lease_s, _longest_s / 2):
        _longest_s = 2 * silent_s
        log.warning(
            "no lease was renewed here for %.0f s: code held the interpreter, or the store did not"
            " answer. Others may have computed the same; leases of this process last longer now"
            " (backend option lease_s)",
            silent_s,
        )


def _bury(before: float) -> None:
    while _ended and _ended[0][0] <= before:
        _ended.pop(0)[1].bury()


@in_forked_child
def _after_fork() -> None:
    """The parent goes on with its leases; a child must neither renew them nor wait for them."""
    global _lock, _is_beating
    _inherited.update(_held)
    _held.clear()
    _unreleased.clear()
    _ended.clear()
    for source in list(sources.values()):
        source.forget()
    _lock, _is_beating = threading.Lock(), False


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


def is_left_behind(path: str) -> bool:
    """Whether a lease stands on *path* that no call of this process will end.

    It is the lease of a process that this one was forked by, or the store refuses to remove it.
    """
    return path in _inherited or path in _unreleased
