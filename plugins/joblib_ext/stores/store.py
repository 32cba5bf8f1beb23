"""What every store of entries is, whether it keeps them in files or as objects."""

from __future__ import annotations

import abc
import contextlib
import json
import os
from collections import Counter
from typing import NamedTuple
from urllib.parse import quote

from typing_extensions import Self

from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import LargeEntry
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.settings import SharedOptions
from joblib_ext.stores.events import Events
from joblib_ext.stores.layout import CODE_FILE, LEASE_MAX, Layout
from mlops_ext.files import TEMP_SUFFIX


class Unusable:
    """Something stands there that can neither be used nor moved aside."""


UNUSABLE = Unusable()
# What stands at a slot; None is nothing.
View = Entry | LargeEntry | LeaseRecord | Unusable | None


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


class BaseStore(abc.ABC):
    """What both kinds of store are: names that hold nothing, a lease, or an entry.

    `FileStore` and `ObjectStore` also have, with the same promises: ``look``, ``acquire``,
    ``resume``, ``take_over`` and ``has_failed`` for single flight, ``publish``,
    ``quarantine``, ``remove_entry``, ``source_at`` and ``token_at``, for many entries ``walk``,
    ``list``, ``shrink`` and ``clear``, and for house-keeping ``litter``, ``empty``,
    ``lease_at``, ``remove_dead`` and ``prune``. None of them raises an error of the storage but
    ``publish``, ``source_at`` and ``clear``: there it would be wrong to go on as if nothing had
    happened.

    Attributes:
        layout: where things stand.
        options: the options.
        events: what goes wrong is told to it.
        key: the signing key, or None.
    """

    layout: Layout
    options: SharedOptions
    events: Events
    key: bytes | None

    @abc.abstractmethod
    def names_in(self, folder: str) -> list[str]:
        """Names of what stands directly in *folder*."""

    @abc.abstractmethod
    def read(self, path: str) -> bytes | None:
        """The bytes of one of the store's own notes."""

    @abc.abstractmethod
    def write(self, path: str, data: bytes) -> None:
        """Keep one of the store's own notes, if that is possible."""

    @abc.abstractmethod
    def create(self, path: str) -> bool:
        """Make *path*; of all that try, one gets True."""

    @abc.abstractmethod
    def remove(self, path: str) -> None:
        """Remove an entry or a folder; where that is not possible, say so once."""

    def version(self, func_id: str, namespace: str, code: str = "") -> CodeVersion:
        """The version of *func_id* that has this namespace."""
        folder = f"{self.layout.function(func_id)}/{namespace}/"
        return CodeVersion(func_id, namespace, folder, code)

    def versions(self, func_id: str) -> list[CodeVersion]:
        """All versions of *func_id* that the store has."""
        names = self.names_in(self.layout.function(func_id))
        return [self.version(func_id, name) for name in names]

    def note_version(self, version: CodeVersion) -> None:
        """Say, for people, what a namespace is."""
        content = {"function": version.func_id, "code": version.code}
        self.write(version.folder + CODE_FILE, json.dumps(content).encode())

    def events_so_far(self) -> Counter[str]:
        """How often each rare event was noted by any process."""
        counts: Counter[str] = Counter()
        for name in self.names_in(self.layout.events):
            for line in (self.read(f"{self.layout.events}/{name}") or b"").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                    counts[str(json.loads(line)["kind"])] += 1
        return counts

    def can_be_written(self) -> bool:
        """Whether something can be made in the store now; it is tried."""
        probe = f"{self.layout.probes}/{os.urandom(8).hex()}"
        is_made = self.create(probe)
        if is_made:
            self.remove(probe)
        return is_made

    def claim(self, name: str) -> bool:
        """Whether this process is the first that asks for *name*; earlier names are dropped."""
        folder = self.layout.claims
        if not self.create(f"{folder}/{name}"):
            return False
        for other in self.names_in(folder):
            if other != name:
                self.remove(f"{folder}/{other}")
        return True
