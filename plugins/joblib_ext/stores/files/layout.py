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
import os
import stat
from dataclasses import dataclass
from urllib.parse import quote, unquote

from joblib_ext.settings import SharedOptions
from joblib_ext.stores.events import Events

ROOT = "mlops-shared-1"
LEASE_MAX = 64
"""A file below the size of an entry's header is a lease, or nothing at all."""
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


def folder_of(func_id: str) -> str:
    """The folder name of a function."""
    name = quote(func_id, safe="<>() ,=+")
    if len(name) > _MAX_NAME:
        name = f"{name[:_MAX_NAME]}~{hashlib.sha256(func_id.encode()).hexdigest()[:16]}"
    return "%2E" + name[1:] if name.startswith(".") else name


def function_of(folder: str) -> str:
    """The function that a folder stands for, for display."""
    return unquote(folder)


def make_own_folder(folder: str) -> None:
    """Make one of a store's own folders; a link in its place is taken away, never followed.

    Raises:
        OSError: the folder could not be made.
    """
    if os.path.islink(folder):  # noqa: PTH114  # texts throughout
        os.unlink(folder)  # noqa: PTH108  # as above
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103  # as above


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of the store at *location*."""

    location: str

    @property
    def root(self) -> str:
        """All of ours is below it."""
        return f"{self.location}{os.sep}{ROOT}"

    def _below(self, name: str) -> str:
        return f"{self.location}{os.sep}{ROOT}{os.sep}{name}"

    @property
    def items(self) -> str:
        """Entries and leases, by function, namespace and shard."""
        return self._below("items")

    @property
    def trash(self) -> str:
        """What was cleared and is being removed."""
        return self._below("trash")

    @property
    def corrupt(self) -> str:
        """What did not verify."""
        return self._below("corrupt")

    @property
    def leases(self) -> str:
        """One file for each process that computes; its leases are links to it."""
        return self._below("leases")

    @property
    def events(self) -> str:
        """Notes of rare events, one file a process."""
        return self._below("events")

    def namespace(self, func_id: str, namespace: str) -> str:
        """The folder of one version of a function."""
        return f"{self.items}/{folder_of(func_id)}/{namespace}"

    def function(self, func_id: str) -> str:
        """The folder of all versions of a function."""
        return f"{self.items}/{folder_of(func_id)}"


def warn_of_writers(layout: Layout, options: SharedOptions, events: Events) -> None:
    """Warn, once a process, where everybody on the machine can write into an unsigned store.

    A folder that its group can write is left alone: that is how a team shares one.
    """
    if options.sign_key is not None or options.trust_folder or os.name != "posix":
        return
    for folder in (layout.location, layout.root, layout.items):
        try:
            mode = os.stat(folder).st_mode  # noqa: PTH116  # a text
        except OSError:
            continue
        if mode & stat.S_IWOTH:
            events.warn_once(
                "writers",
                f"{folder} can be written by everybody, and reading a cached result runs what"
                " stands there: take the right away (chmod o-w), set the backend option sign_key"
                " to a secret of those who share it, or set trust_folder=True",
            )
            return
