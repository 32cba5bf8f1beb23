"""Where things stand in a store, and what its names mean.

    <location>/mlops-shared-1/
        items/<function>/<namespace>/<two hex digits>/<arguments>   entries, and leases
        items/<function>/<namespace>/code.json                      what the namespace is
        trash/   cleared trees on their way out
        corrupt/ what failed its check, for a look; `gc` empties it
        leases/  one small file for each process that computes
        events/  one small file a process: conflicts, lost replies, takeovers

joblib's own backend writes ``<location>/<module>/<function>/<arguments>/output.pkl`` and is left
alone: nothing of it is read, moved or removed.
"""

from __future__ import annotations

import hashlib
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


class Layout:
    """The folders of the store at *location*.

    Attributes:
        location: what the store was given.
        root: all of ours is below it.
        items: entries and leases, by function, namespace and shard.
        trash: what was cleared and is being removed.
        corrupt: entries that failed their check.
        leases: one file for each process that computes; its leases are links to it.
        events: notes of rare events, one file a process.
        claims: what one process does for all, such as house-keeping in this hour.
        probes: what is made and removed to see whether a store takes it, and keeps conditions.
    """

    def __init__(self, location: str) -> None:
        self.location, self.root = location, f"{location}/{ROOT}"
        self.items, self.trash = f"{self.root}/items", f"{self.root}/trash"
        self.corrupt, self.leases = f"{self.root}/corrupt", f"{self.root}/leases"
        self.events, self.claims = f"{self.root}/events", f"{self.root}/claims"
        self.probes = f"{self.root}/probes"

    def function(self, func_id: str) -> str:
        """The folder of all versions of a function."""
        return f"{self.items}/{shortened(func_id, safe='<>() ,=+')}"

    def title(self, folder: str) -> str:
        """The name under which a folder's function is shown."""
        return unquote(folder)
