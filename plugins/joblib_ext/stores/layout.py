"""Where things stand in a store, and what its names mean.

    <location>/mlops-shared-1/
        items/<function>/<namespace>/<two hex digits>/<arguments>   entries, and leases
        items/<function>/<namespace>/code.json                      what the namespace is
        trash/   cleared trees on their way out
        corrupt/ what did not verify, for a look; `gc` empties it
        leases/  one small file for each process that computes
        events/  one small file a process: conflicts, lost replies, takeovers

joblib's own backend writes ``<location>/<module>/<function>/<arguments>/output.pkl`` and is left
alone: nothing of it is read, moved or removed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from urllib.parse import quote, unquote

ROOT = "mlops-shared-1"
# A file below the size of an entry's header is a lease, or nothing at all.
LEASE_MAX = 64
CODE_FILE = "code.json"
_NAMESPACE_DIGITS = 24
_MAX_NAME = 200


def namespace_of(code: str, key: bytes | None) -> str:
    """The namespace of a function's source code: 96 bits of its SHA-256, in hex.

    A signing key is part of it, so that teams with different keys never meet.
    """
    digest = hashlib.sha256(code.encode("utf-8", "surrogatepass"))
    if key is not None:
        digest.update(b"\0" + hashlib.sha256(key).digest())
    return digest.hexdigest()[:_NAMESPACE_DIGITS]


def shortened(func_id: str, *, safe: str) -> str:
    """A name of one path's part for a function, with *safe* characters as they are."""
    name = quote(func_id, safe=safe)
    if len(name) > _MAX_NAME:
        name = f"{name[:_MAX_NAME]}~{hashlib.sha256(func_id.encode()).hexdigest()[:16]}"
    return "%2E" + name[1:] if name.startswith(".") else name


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of the store at *location*."""

    location: str

    @property
    def root(self) -> str:
        """All of ours is below it."""
        return f"{self.location}/{ROOT}"

    @property
    def items(self) -> str:
        """Entries and leases, by function, namespace and shard."""
        return f"{self.root}/items"

    @property
    def trash(self) -> str:
        """What was cleared and is being removed."""
        return f"{self.root}/trash"

    @property
    def corrupt(self) -> str:
        """What did not verify."""
        return f"{self.root}/corrupt"

    @property
    def leases(self) -> str:
        """One file for each process that computes; its leases are links to it."""
        return f"{self.root}/leases"

    @property
    def claims(self) -> str:
        """What one process does for all, such as house-keeping in this hour."""
        return f"{self.root}/claims"

    @property
    def events(self) -> str:
        """Notes of rare events, one file a process."""
        return f"{self.root}/events"

    def namespace(self, func_id: str, namespace: str) -> str:
        """The folder of one version of a function."""
        return f"{self.function(func_id)}/{namespace}"

    def function(self, func_id: str) -> str:
        """The folder of all versions of a function."""
        return f"{self.items}/{shortened(func_id, safe='<>() ,=+')}"

    def title(self, folder: str) -> str:
        """The function that a folder stands for, for display."""
        return unquote(folder)
