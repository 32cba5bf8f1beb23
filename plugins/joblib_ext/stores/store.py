"""What every store of entries does, whether it keeps them in files or as objects.

A name in a store holds nothing, a lease, or an entry. Single flight, the backend and the commands
use a store by these functions alone, so that another kind of store can stand beside the files'.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import quote

from typing_extensions import Self

from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import LargeEntry
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.entries.payload import Buffer
from joblib_ext.settings import SharedOptions
from joblib_ext.stores.events import Events
from joblib_ext.stores.leases import Lease


class Unusable:
    """Something stands there that can neither be used nor moved aside."""


UNUSABLE = Unusable()
View = Entry | LargeEntry | LeaseRecord | Unusable | None
"""What stands at a slot; None is nothing."""


class Refusal(enum.Enum):
    """Why a lease was not acquired."""

    BY_OTHERS = "somebody has a lease or an entry there"
    NOT_POSSIBLE = "the store refused"


class CodeVersion:
    """One version of a function: where its entries stand, and what their checksums bind them to."""

    __slots__ = ("code", "folder", "func_id", "namespace", "prefix")

    def __init__(self, func_id: str, namespace: str, folder: str, code: str = "") -> None:
        self.func_id, self.namespace, self.code = func_id, namespace, code
        self.folder = folder
        self.prefix = f"{func_id}\0{namespace}\0".encode("utf-8", "surrogatepass")


class Slot:
    """Where one result lives: its path, and what its checksum binds it to.

    A plain class: each hit makes one, and a frozen dataclass costs three times as much.
    """

    __slots__ = ("binding", "path", "version")

    def __init__(self, version: CodeVersion, arguments: str) -> None:
        if "/" in arguments:
            arguments = quote(arguments, safe="")
        self.version = version
        self.path = f"{version.folder}{arguments[:2]}/{arguments}"
        self.binding = version.prefix + arguments.encode()

    def at(self, path: str) -> Self:
        """The same result under another path: a copy of it, or where it was moved to."""
        other = self.__class__.__new__(self.__class__)
        other.version, other.binding, other.path = self.version, self.binding, path
        return other


class Reader(Protocol):
    """Looks results up."""

    def look(self, slot: Slot) -> View:
        """What stands there; never raises an error of the storage.

        An entry is verified when it is small, and when it is loaded otherwise. What is damaged
        counts as nothing once it was moved aside, and as `Unusable` where it could not be.
        """
        ...


class Store(Reader, Protocol):
    """The entries below one location; errors of the storage end here as misses."""

    options: SharedOptions
    events: Events
    key: bytes | None

    def version(self, func_id: str, namespace: str, code: str = "") -> CodeVersion:
        """The version of *func_id* that has this namespace."""
        ...

    def versions(self, func_id: str) -> list[CodeVersion]:
        """All versions of *func_id* that the store has."""
        ...

    def token_at(self, path: str) -> bytes | None:
        """The token of the writing that stands at *path*, or None; never raises OSError."""
        ...

    def acquire(self, slot: Slot) -> Lease | Refusal:
        """A lease on *slot*, if nothing stands there.

        Of all that ask at one time, on any host, one gets it. A reply that was lost is recognised
        by the lease's token. The lease is renewed until it is stopped or released.
        """
        ...

    def resume(self, slot: Slot, record: LeaseRecord) -> Lease | None:
        """This process's own lease that it does not know of: the reply to `acquire` was lost."""
        ...

    def take_over(
        self, slot: Slot, record: LeaseRecord, is_dead: Callable[[LeaseRecord], bool]
    ) -> Lease | Refusal:
        """A lease in place of a dead owner's, which is *record*: one of all that try gets it."""
        ...

    def build(
        self, pieces: Sequence[Buffer], buffers: int, metadata: Mapping[str, Any], binding: bytes
    ) -> tuple[list[Buffer], bytes]:
        """An entry in pieces ready to be published, and its token."""
        ...

    def publish(self, slot: Slot, pieces: Sequence[Buffer], token: bytes) -> None:
        """Put an entry in place of whatever stands at *slot*; readers see all of it, or nothing.

        Raises:
            OSError: the storage refused; nothing is left behind.
        """
        ...

    def quarantine(self, slot: Slot | LargeEntry) -> bool:
        """Move a damaged entry aside; False if it verifies after all, or cannot be moved."""
        ...

    def remove(self, path: str) -> None:
        """Remove an entry or a folder; where that is not possible, say so once."""
        ...

    def list(self, kind: type[Any]) -> list[Any]:
        """All entries, as tuples of *kind* with path, size and last access."""
        ...

    def clear(self, version: CodeVersion | None = None, func_id: str = "") -> None:
        """Remove all entries of *version*, else of *func_id*, else of the store.

        They are gone for every process when this returns.
        """
        ...

    def has_function(self, func_id: str) -> bool:
        """Whether any version of *func_id* has a folder."""
        ...
