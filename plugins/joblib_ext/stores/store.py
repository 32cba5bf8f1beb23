"""What every store of entries does, whether it keeps them in files or as objects.

A name in a store holds nothing, a lease, or an entry. Single flight, the backend and the commands
use a store by these functions alone, so that another kind of store can stand beside the files'.
"""

from __future__ import annotations

import datetime as dt
import enum
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from typing_extensions import Self

from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import LargeEntry, Source
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.entries.payload import Buffer
from joblib_ext.settings import SharedOptions
from joblib_ext.stores.events import Events
from joblib_ext.stores.layout import LEASE_MAX, Layout
from joblib_ext.stores.leases import Lease
from mlops_ext.files import TEMP_SUFFIX


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

    __slots__ = ("arguments", "binding", "path", "version")

    def __init__(self, version: CodeVersion, arguments: str) -> None:
        if "/" in arguments:
            arguments = quote(arguments, safe="")
        self.version, self.arguments = version, arguments
        self.path = f"{version.folder}{arguments[:2]}/{arguments}"
        self.binding = version.prefix + arguments.encode()

    def at(self, path: str) -> Self:
        """The same result under another path: a copy of it, or where it was moved to."""
        other = self.__class__.__new__(self.__class__)
        other.version, other.binding, other.path = self.version, self.binding, path
        other.arguments = self.arguments
        return other


class Found(NamedTuple):
    """Something that stands where entries do.

    Attributes:
        path: its path.
        function: the folder name of its function.
        namespace: the version of the function.
        size: its bytes.
        used: last access, or the writing where the store keeps no other time.
        written: the writing.
    """

    path: str
    function: str
    namespace: str
    size: int
    used: float
    written: float

    @property
    def name(self) -> str:
        """The last part of its path: the digest of the arguments."""
        return self.path.rpartition("/")[2]

    @property
    def is_temporary(self) -> bool:
        """Whether it is on its way to be something else."""
        return self.name.endswith(TEMP_SUFFIX) or self.name.startswith(".")

    @property
    def is_entry(self) -> bool:
        """Whether it is an entry: no lease, and nothing temporary."""
        return self.size >= LEASE_MAX and not self.is_temporary


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

    @property
    def layout(self) -> Layout:
        """Where things stand."""
        ...

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

    def has_failed(self, slot: Slot, record: LeaseRecord, view: View) -> bool:
        """Whether the lease *record* ended without a result, where *view* stands now."""
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

    def remove_entry(self, slot: Slot, token: bytes) -> None:
        """Remove the writing with this *token*; whatever else stands there stays."""
        ...

    def source_at(self, path: str) -> tuple[Source, int]:
        """What stands at *path*, to be read, and its size.

        Raises:
            OSError: nothing stands there, or it cannot be read.
        """
        ...

    def walk(self) -> Iterator[Found]:
        """Whatever stands where entries do: also leases and temporary files."""
        ...

    def note_of(self, version: CodeVersion) -> bytes | None:
        """What was noted of a version, as JSON."""
        ...

    def claim(self, name: str) -> bool:
        """Whether this process is the first that asks for *name*; earlier names are dropped."""
        ...

    def names_in(self, folder: str) -> Sequence[str]:
        """Paths of what stands in one of the store's own folders."""
        ...

    def events_so_far(self) -> Counter[str]:
        """How often each rare event was noted by any process."""
        ...

    def list(self, kind: type[Any]) -> list[Any]:
        """All entries, as tuples of *kind* with path, size and last access."""
        ...

    def shrink(
        self,
        bytes_limit: int | str | None,
        items_limit: int | None,
        age_limit: dt.timedelta | None,
    ) -> int:
        """Remove entries until the limits hold; the number that was removed.

        Raises:
            ValueError: a limit is not a size, or negative.
        """
        ...

    def clear(self, version: CodeVersion | None = None, func_id: str = "") -> None:
        """Remove all entries of *version*, else of *func_id*, else of the store.

        They are gone for every process when this returns.

        Raises:
            OSError: some are still there; to say nothing would serve what was cleared.
        """
        ...

    def has_function(self, func_id: str) -> bool:
        """Whether any version of *func_id* has a folder."""
        ...
