"""The ``shared`` store backend of ``joblib.Memory``.

Cached functions do not come through joblib's protocol: see `joblib_ext.memorized`. What stands here
is for references to results, for limits and clearing, and for those who use a store by hand.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from joblib._store_backends import CacheItemInfo, StoreBackendBase, StoreBackendMixin
from joblib.disk import mkdirp
from joblib.logger import format_time

from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import CorruptEntryError, LargeEntry
from joblib_ext.runtime import Runtime
from joblib_ext.settings import SharedOptions, read_options
from joblib_ext.stores.files.folders import group_of, make_own_folder
from joblib_ext.stores.limits import Limits
from joblib_ext.stores.local_cache import LocalCache
from joblib_ext.stores.objects.location import check_location, is_object_location
from joblib_ext.stores.store import CodeVersion, Slot

# Namespace of items that are dumped by hand, without a function.
_DIRECT = "0" * 24
# From this verbosity on, joblib names paths.
_VERY_TALKATIVE = 10


class _HasRuntime:
    """Holds what a backend needs at run time: neither a pickle nor a comparison sees it."""

    __slots__ = ("_runtime",)
    _runtime: Runtime


class SharedStoreBackend(_HasRuntime, StoreBackendBase, StoreBackendMixin):  # type: ignore[misc,unused-ignore]  # joblib has no types
    """Keeps results where several machines can share them: in a folder, or in an object store.

    Use it as ``Memory(location, backend="shared", backend_options={...})``; the options are those
    of `joblib_ext.SharedOptions`. Nothing that the store does is raised into a cached call.
    """

    # Cached functions become those of `joblib_ext.memorized`; see `joblib_ext.patches`.
    adopts = True
    location: str
    verbose: int = 0
    compress: Any = None
    mmap_mode: str | None = None
    options: SharedOptions = SharedOptions()

    def configure(
        self,
        location: str,
        verbose: int = 1,
        backend_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Set the store up; a location that cannot be written only costs a warning later.

        Raises:
            SettingsError: an option is unknown or has a value that cannot be used, or the location
                is neither a folder's nor an object store's.
            MissingExtraError: an option or the location needs a package that is not installed.
        """
        given = dict(backend_options or {})
        self.options = read_options(given)
        self.location, self.verbose = location, verbose
        self.compress = given.get("compress", False)
        self.mmap_mode = self.options.mmap_mode
        if is_object_location(location):
            check_location(location, self.options)
        else:
            self._prepare_location()
        self._start()

    def _start(self) -> None:
        where = self.location  # a program may go to another folder, but stays with this one
        if not is_object_location(where):
            where = os.path.abspath(where)  # noqa: PTH100  # a text
        self._runtime = Runtime(where, self.options)

    def __getattr__(self, name: str) -> Any:
        if name != "_runtime":
            raise AttributeError(name)
        self._start()  # used without being configured
        return self._runtime

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "options": self.options.without_secrets()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # pyright: ignore[reportAttributeAccessIssue]  # it is a dict
        self.options = self.options.with_secrets()
        self._start()

    def _prepare_location(self) -> None:
        """As joblib does: the folder, and a .gitignore beside or in it."""
        folder, group = Path(self.location), group_of(self.options.group)
        with contextlib.suppress(OSError):
            if not os.path.lexists(folder):  # a link there is the user's
                make_own_folder(self.location, group)
            base = folder.parent if folder.name == "joblib" else folder
            ignore = base / ".gitignore"
            if not ignore.exists():
                ignore.write_text("# Created by joblib automatically.\n*\n", encoding="utf-8")

    # -- the function's code: `joblib_ext.versions` sees to it ------------------------------------

    def get_cached_func_code(self, call_id: Sequence[str]) -> str:
        """There is none: versions live side by side, and none is wiped for another.

        Raises:
            OSError: always, which joblib takes for a function that it sees for the first time.
        """
        raise FileNotFoundError(call_id[0])

    def store_cached_func_code(self, call_id: Sequence[str], func_code: str | None = None) -> None:
        """Nothing: the folder of a version is made with its first entry."""

    # -- one item -------------------------------------------------------------------------------

    def contains_item(self, call_id: Sequence[str]) -> bool:
        """Whether a verified result is there."""
        return bool(self.get_metadata(call_id))  # no entry is without

    def get_metadata(self, call_id: Sequence[str]) -> dict[str, Any]:
        """What joblib noted of the call; {} where there is no entry."""
        found = self._find(call_id)
        with contextlib.suppress(OSError, CorruptEntryError):
            return found.metadata() if found is not None else {}
        return {}

    def load_item(
        self,
        call_id: Sequence[str],
        verbose: int = 1,
        timestamp: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Any:
        """The value of an item.

        Raises:
            KeyError: there is none, or it is damaged.
            Exception: whatever unpickling raises.
        """
        if verbose > 1:
            self.tell(call_id, verbose, timestamp, metadata)
        found = self._find(call_id)
        if found is not None:
            try:
                return self.value_of(found)
            except (CorruptEntryError, OSError) as error:
                self._runtime.discard(found, error)
        raise KeyError(f"Non-existing item (may have been cleared): {call_id[0]}, {call_id[1]}")

    def value_of(self, entry: Entry | LargeEntry) -> Any:
        """The value of an entry; its arrays are mapped if that is asked for.

        Raises:
            CorruptEntryError: it does not verify.
            OSError: it cannot be read.
            Exception: whatever unpickling raises.
        """
        if isinstance(entry, Entry) or self.mmap_mode is None:
            return entry.value()
        runtime = self._runtime
        asked, token = runtime.store.options.verify, entry.header.token
        signed = runtime.store.key is not None  # then no option lets unchecked bytes be unpickled
        verify = signed or asked == "always" or (asked == "first" and token not in runtime.verified)
        value = entry.map(self.mmap_mode, verify=verify)
        runtime.verified.add(token)
        return value

    def dump_item(self, call_id: Sequence[str], item: Any, verbose: int = 1) -> None:
        """Store an item by hand."""
        del verbose
        body = self._runtime.writer.serialise(item)
        if body is not None and len(call_id) > 1 and not isinstance(call_id, str):
            self._runtime.writer.write(self._slot(call_id), body, {})

    def store_metadata(self, call_id: Sequence[str], metadata: dict[str, Any]) -> None:
        """Write an item anew with other metadata: entries do not change."""
        writer, slot = self._runtime.writer, self._slot(call_id)
        found = self._read(slot)
        if found is not None:
            body = writer.serialise(found.value())
            if body is not None:
                writer.write(slot, body, metadata)

    def clear_item(self, call_id: Sequence[str]) -> None:
        """Remove an item; where its version is not known, of all versions."""
        for slot in self._slots(call_id):
            self._runtime.writer.forget(slot.path)
            self._runtime.store.remove(slot.path)

    # -- many items -----------------------------------------------------------------------------

    def clear_path(self, call_id: Sequence[str]) -> None:
        """Remove the results of all versions of a function."""
        self._clear(self._runtime.store.layout.function(call_id[0]))

    def clear_version(self, version: CodeVersion) -> None:
        """Remove the results of one version; others keep theirs."""
        self._clear(version.folder)

    def clear(self) -> None:
        """Remove everything of this store: one rename, the rest in the background."""
        self._clear(self._runtime.store.layout.items)

    def _clear(self, folder: str) -> None:
        self._runtime.writer.forget(folder)
        if isinstance(self._runtime.reader, LocalCache):
            self._runtime.reader.forget()
        self._runtime.store.clear(folder)

    def clear_location(self, location: str) -> None:
        """Remove an item or a folder, by its path."""
        if location == self.location:
            self.clear()
        else:
            self._runtime.store.remove(location)

    def get_items(self) -> Any:
        """All entries: path, size and last access."""
        return self._runtime.store.list(CacheItemInfo)

    def enforce_store_limits(
        self, bytes_limit: Any, items_limit: int | None = None, age_limit: Any = None
    ) -> None:
        """Remove the entries that were not used for longest; see `eviction`."""
        self._runtime.store.shrink(Limits.of(bytes_limit, items_limit, age_limit))

    def _slot(self, call_id: Sequence[str]) -> Slot:
        namespace = getattr(call_id, "namespace", _DIRECT)
        return Slot(self._runtime.store.version(call_id[0], namespace), call_id[1])

    def _slots(self, call_id: Sequence[str]) -> list[Slot]:
        """Where an item can stand: its version may not be known, as after a text was evaluated."""
        if hasattr(call_id, "namespace"):
            return [self._slot(call_id)]
        store = self._runtime.store
        slots = [Slot(version, call_id[1]) for version in store.versions(call_id[0])]
        return [slot for slot in slots if store.token_at(slot.path)]

    def _find(self, call_id: Sequence[str]) -> Entry | LargeEntry | None:
        """An item; of those whose version is not known, if exactly one version has it."""
        slots = self._slots(call_id)
        return self._read(slots[0]) if len(slots) == 1 else None

    def _read(self, slot: Slot) -> Entry | LargeEntry | None:
        found = self._runtime.reader.look(slot)
        if isinstance(found, (Entry, LargeEntry)):
            return found
        return self._runtime.writer.recall(slot.path)

    # -- what joblib's abstract base asks of any folder ------------------------------------------

    _open_item = staticmethod(open)  # pyright: ignore[reportAssignmentType]  # as in joblib
    _item_exists = staticmethod(os.path.exists)  # pyright: ignore[reportAssignmentType]  # as in joblib
    _move_item = staticmethod(os.replace)  # pyright: ignore[reportAssignmentType]  # as in joblib
    create_location = staticmethod(mkdirp)  # pyright: ignore[reportAssignmentType]  # as in joblib

    def tell(
        self,
        call_id: Sequence[str],
        verbose: int,
        timestamp: float | None,
        metadata: Mapping[str, Any] | None,
    ) -> None:
        """Say what is loaded, in joblib's words."""
        age = f"{format_time(time.time() - timestamp): <16}" if timestamp is not None else ""
        signature = os.path.basename(call_id[0])  # noqa: PTH119  # a text
        if metadata and "input_args" in metadata:
            arguments = ", ".join(f"{name}={text}" for name, text in metadata["input_args"].items())
            signature += f"({arguments})"
        more = "..." if verbose < _VERY_TALKATIVE else f" from {self.location}"
        print(f"[Memory]{age}: Loading {signature}{more}")  # noqa: T201  # as joblib's own
