"""Looking into a store from outside of a call: statistics and verification."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from joblib_ext.entries.large_entry import Verdict, judge
from joblib_ext.stores.kinds import Store
from joblib_ext.stores.layout import CODE_FILE, LEASE_MAX
from joblib_ext.stores.store import CodeVersion, Found, Slot

T = TypeVar("T")
# Goes through a list, and shows how far it is.
Track = Callable[[Sequence[T]], Iterable[T]]


@dataclass(slots=True, kw_only=True)
class VersionStats:
    """One version of a function.

    Attributes:
        function: its name.
        namespace: its version.
        entries: number of entries.
        size: their bytes.
        last_used: latest access, in seconds since the epoch.
        used_again: entries that were read after they were written.
    """

    function: str
    namespace: str
    entries: int = 0
    size: int = 0
    last_used: float = 0.0
    used_again: int = 0


@dataclass(slots=True, kw_only=True)
class Stats:
    """What is in a store.

    Attributes:
        versions: by function and version, largest first.
        leases: leases that stand now.
        orphans: temporary files.
        corrupt: what was moved aside.
        trash: trees on their way out.
        events: how often each rare event was noted.
    """

    versions: list[VersionStats]
    leases: int = 0
    orphans: int = 0
    corrupt: int = 0
    trash: int = 0
    events: dict[str, int] = field(default_factory=dict)

    @property
    def entries(self) -> int:
        """All entries."""
        return sum(version.entries for version in self.versions)

    @property
    def size(self) -> int:
        """Bytes of all entries."""
        return sum(version.size for version in self.versions)


def statistics(store: Store) -> Stats:
    """What is in *store*; nothing is opened or changed."""
    layout = store.layout
    stats = Stats(
        versions=[],
        corrupt=len(store.names_in(layout.corrupt)),
        trash=len(store.names_in(layout.trash)),
        events=dict(store.events_so_far()),
    )
    versions: dict[tuple[str, str], VersionStats] = {}
    for found in store.walk():
        if found.is_temporary:
            stats.orphans += 1
        elif found.size < LEASE_MAX:
            stats.leases += 1
        else:
            function = layout.title(found.function)
            made = VersionStats(function=function, namespace=found.namespace)
            version = versions.setdefault((found.function, found.namespace), made)
            version.entries += 1
            version.size += found.size
            version.last_used = max(version.last_used, found.used)
            version.used_again += found.used > found.written
    stats.versions = sorted(versions.values(), key=lambda version: -version.size)
    return stats


@dataclass(slots=True, kw_only=True)
class Verified:
    """What a verification found.

    Attributes:
        good: entries whose every byte was checked.
        corrupt: paths that do not verify.
        unchecked: entries that another key, or another installation, is needed to check.
        repaired: how many of the corrupt ones were moved aside.
    """

    good: int = 0
    corrupt: list[str] = field(default_factory=list)
    unchecked: int = 0
    repaired: int = 0


def verify_entries(store: Store, *, repair: bool = True, track: Track[Found] = iter) -> Verified:
    """Check every byte of every entry; what is damaged is moved aside where *repair* says so.

    What cannot be checked here is left where it is.
    """
    verified = Verified()
    todo = [found for found in store.walk() if not found.is_temporary]
    versions: dict[tuple[str, str], CodeVersion] = {}
    for found in track(todo):
        where = found.function, found.namespace
        if where not in versions:
            versions[where] = exact_version(store, *where)
        slot = Slot(versions[where], found.name).at(found.path)
        try:
            source, size = store.source_at(found.path)
            verdict = judge(source, size, slot.binding, store.key)
        except FileNotFoundError:
            continue
        except OSError:  # it cannot be read: nothing is known of it
            verdict = Verdict.UNCHECKED
        if verdict is Verdict.GOOD:
            verified.good += 1
        elif verdict is Verdict.UNCHECKED:
            verified.unchecked += 1
        elif verdict is Verdict.DAMAGED:
            verified.corrupt.append(found.path)
            verified.repaired += repair and store.quarantine(slot)
    return verified


def exact_version(store: Store, function: str, namespace: str) -> CodeVersion:
    """The version that a folder is: the exact name of its function is noted in it."""
    version = store.version(store.layout.title(function), namespace)
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        note = json.loads(store.read(version.folder + CODE_FILE) or b"{}")
        return store.version(str(note["function"]), namespace)
    return version
