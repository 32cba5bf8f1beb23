"""The ``shared`` store backend of ``joblib.Memory``.

How joblib's calls are used: only ``_cached_call`` asks for ``get_cached_func_info``, so that
question arms the lease that ``contains_item`` then takes or waits for; what ``contains_item`` read
answers ``get_metadata`` and ``load_item``; ``dump_item`` serialises, and ``store_metadata``, which
follows, publishes value and metadata as one file.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from joblib._store_backends import CacheItemInfo, StoreBackendBase, StoreBackendMixin
from joblib.disk import mkdirp
from joblib.logger import format_time

from joblib_ext.calls import Call, CallInfo
from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import CorruptEntryError, LargeEntry
from joblib_ext.entries.metadata import NAMESPACE, LazyMetadata
from joblib_ext.maintenance import eviction
from joblib_ext.runtime import HasRuntime
from joblib_ext.settings import SharedOptions, read_options
from joblib_ext.single_flight import acquire_or_wait
from joblib_ext.stores.store import CodeVersion, Slot, View
from mlops_ext.errors import SettingsError

_DIRECT = "0" * 24
"""Namespace of items that are dumped by hand, without a function."""
_TALKATIVE = 1
_VERY_TALKATIVE = 10
"""From this verbosity on, joblib names paths."""


class SharedStoreBackend(HasRuntime, StoreBackendBase, StoreBackendMixin):  # type: ignore[misc,unused-ignore]  # joblib has no types
    """Keeps results on a file system that several machines may share.

    Use it as ``Memory(location, backend="shared", backend_options={...})``; the options are those
    of `joblib_ext.SharedOptions`. Nothing that the file system does is raised into a cached call.
    """

    publishes_with_metadata = True
    """joblib blames large arguments where `store_metadata` is slow; see `joblib_ext.patches`."""
    location: str
    verbose: int = 0
    compress: Any = None
    mmap_mode: str | None = None
    options: SharedOptions | None = None

    def configure(
        self,
        location: str,
        verbose: int = 1,
        backend_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Set the store up; a location that cannot be written only costs a warning later.

        Raises:
            SettingsError: an option is unknown or has a value that cannot be used, or the location
                is not a folder's.
        """
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", location):
            raise SettingsError("location", location, "a folder: this is the address of a service")
        given = dict(backend_options or {})
        self.options = read_options(given)
        self.location, self.verbose = location, verbose
        self.compress = given.get("compress", False)
        self.mmap_mode = self.options.mmap_mode
        self._prepare_location()

    def _prepare_location(self) -> None:
        """As joblib does: the folder, and a .gitignore beside or in it."""
        folder = Path(self.location)
        with contextlib.suppress(OSError):
            mkdirp(self.location)
            base = folder.parent if folder.name == "joblib" else folder
            ignore = base / ".gitignore"
            if not ignore.exists():
                ignore.write_text("# Created by joblib automatically.\n*\n", encoding="utf-8")

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    # -- the function's code --------------------------------------------------------------------

    def get_cached_func_code(self, call_id: Sequence[str]) -> str:
        """A text that equals the code at hand: each version has a namespace of its own."""
        return self._runtime.functions.learning_code(call_id[0])

    def store_cached_func_code(self, call_id: Sequence[str], func_code: str | None = None) -> None:
        """Note the version of a function; its folder is made with its first entry."""
        if func_code is not None:
            header, _, code = func_code.partition("\n")
            code = code if header.startswith("# first line:") else func_code
            self._runtime.functions.learn(call_id[0], code)

    def get_cached_func_info(self, call_id: Sequence[str]) -> CallInfo:
        """Where the function's entries are; arms the lease of the call that asks."""
        info = CallInfo(location=self.location)
        info.func_id = call_id[0]
        self._runtime.local.state.expected = info
        return info

    # -- one item -------------------------------------------------------------------------------

    def contains_item(self, call_id: Sequence[str]) -> bool:
        """Whether a verified result is there; in a cached call, wait for it or lease it."""
        runtime = self._runtime
        state = runtime.local.state
        info = state.expected
        state.expected = state.read = None
        func_id, arguments = call_id
        known = runtime.functions.known.get(id(func_id))
        version: CodeVersion | None
        if known is not None and known[0] is func_id:
            version = known[1]
        else:
            version = runtime.functions.version_of_caller(func_id)
            if version is None:
                return self._search(call_id) is not None
        slot = Slot(version, arguments)
        found: View = runtime.reader.look(slot)
        if not isinstance(found, (Entry, LargeEntry)):
            if info is None or info.func_id is not func_id:
                return False
            found = self._lease(info, Call(runtime.writer, call_id, slot), found)
            if found is None:
                return False
        state.read = call_id, found
        return True

    def _lease(self, info: CallInfo, call: Call, view: View) -> Entry | LargeEntry | None:
        """The result that another process computed, or None: then *call* is to compute."""
        runtime = self._runtime
        if runtime.store.options.single_flight:
            found = acquire_or_wait(runtime.store, call.slot, view)
            if isinstance(found, (Entry, LargeEntry)):
                return found
            if found is not None:
                call.lease = found
                found.note_frame()
        info.call = call
        runtime.calls.add(call)
        return None

    def get_metadata(self, call_id: Sequence[str]) -> dict[str, Any]:
        """What joblib noted of the call; {} where there is no entry."""
        entry = self._entry(call_id, None)
        if entry is None:
            return {}
        metadata = LazyMetadata()
        metadata.source = entry
        return metadata

    def load_item(
        self,
        call_id: Sequence[str],
        verbose: int = 1,
        timestamp: float | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Any:
        """The value of an item.

        Raises:
            KeyError: there is none.
            Exception: whatever unpickling raises.
        """
        if verbose > _TALKATIVE:
            self._tell(call_id, verbose, timestamp, metadata)
        runtime = self._runtime
        found = runtime.local.state.read
        if found is not None and found[0] is call_id and found[1].__class__ is Entry:
            return found[1].value()
        call = runtime.calls.get(call_id)
        if call is not None:
            runtime.local.state.uncached = None
        entry = self._entry(call_id, metadata)
        if entry is not None:
            try:
                return self._value(entry)
            except (CorruptEntryError, OSError) as error:
                if isinstance(error, CorruptEntryError):
                    self._quarantine(entry)
                if call is None or call.item is None:
                    raise  # to joblib a miss; after a computation the caller would get it
        if call is not None and call.item is not None:
            return call.item[0]
        raise KeyError(f"Non-existing item (may have been cleared): {call_id[0]}, {call_id[1]}")

    def dump_item(self, call_id: Sequence[str], item: Any, verbose: int = 1) -> None:
        """Take a result; within a cached call it is published by `store_metadata`."""
        runtime = self._runtime
        call = runtime.calls.get(call_id) or self._forced(call_id)
        if call is not None:
            if verbose > _VERY_TALKATIVE:
                print(f"Persisting in {call.slot.path}")  # noqa: T201  # as joblib's own
            call.item = (item,) if self.mmap_mode else None
            call.pending = runtime.writer.serialise(item)
            if call.pending is None:
                call.release()
            return
        body = runtime.writer.serialise(item)
        if body is not None and len(call_id) > 1 and not isinstance(call_id, str):
            version = self._version(call_id[0]) or runtime.functions.at(call_id[0], _DIRECT)
            runtime.writer.write(Slot(version, call_id[1]), body, {})

    def _forced(self, call_id: Sequence[str]) -> Call | None:
        """A call that asked for nothing before, as ``call()`` and coroutines do; it has no lease.

        joblib's function stores the metadata next, so that one writing is enough.
        """
        runtime = self._runtime
        runtime.local.state.uncached = None  # one that failed in between
        version = runtime.functions.version_of_caller(call_id[0])
        if version is None:
            return None
        call = Call(runtime.writer, call_id, Slot(version, call_id[1]))
        runtime.local.state.uncached = runtime.calls.add(call)
        return call

    def store_metadata(self, call_id: Sequence[str], metadata: dict[str, Any]) -> None:
        """Publish a computed result together with its metadata, as one file."""
        runtime = self._runtime
        call = runtime.calls.get(call_id)
        if call is not None:
            metadata[NAMESPACE] = call.slot.version.namespace
            runtime.writer.finish(call, metadata)
            # With a map, joblib loads the result next.
            if call is runtime.local.state.uncached and not self.mmap_mode:
                runtime.local.state.uncached = None
            return
        version = self._version(call_id[0]) or runtime.functions.at(call_id[0], _DIRECT)
        metadata[NAMESPACE] = version.namespace
        runtime.writer.add_metadata(Slot(version, call_id[1]), metadata)

    def clear_item(self, call_id: Sequence[str]) -> None:
        """Remove an item; one that somebody renewed since it was looked at stays."""
        runtime = self._runtime
        judged = runtime.local.state.read
        runtime.local.state.read = None
        for version in self._versions(call_id):
            path = Slot(version, call_id[1]).path
            runtime.writer.forget(path)
            if judged is not None and judged[0] is call_id:
                token = runtime.store.token_at(path)
                if token is not None and token != judged[1].header.token:
                    continue
            runtime.store.remove(path)

    # -- many items -----------------------------------------------------------------------------

    def contains_path(self, call_id: Sequence[str]) -> bool:
        """Whether any version of a function has a folder."""
        return self._runtime.store.has_function(call_id[0])

    def clear_path(self, call_id: Sequence[str]) -> None:
        """Remove the results of the function's version at hand; other versions keep theirs."""
        runtime = self._runtime
        version = runtime.functions.version_of_caller(call_id[0]) or runtime.functions.version(
            call_id[0]
        )
        runtime.local.state.read = None
        for old in [version] if version else runtime.store.versions(call_id[0]):
            runtime.writer.forget(old.folder)
        runtime.store.clear(version, call_id[0])

    def clear(self) -> None:
        """Remove everything of this store: one rename, the rest in the background."""
        runtime = self._runtime
        runtime.local.state.read = None
        runtime.writer.forget("")
        runtime.store.clear()

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
        eviction.enforce(self._runtime.store, bytes_limit, items_limit, age_limit)

    def _version(self, func_id: str) -> CodeVersion | None:
        functions = self._runtime.functions
        return functions.version_of_caller(func_id) or functions.version(func_id)

    def _versions(self, call_id: Sequence[str]) -> list[CodeVersion]:
        """The version that is meant; where it cannot be known, all that have such an item."""
        version = self._version(call_id[0])
        return [version] if version is not None else self._holders(call_id)

    def _holders(self, call_id: Sequence[str]) -> list[CodeVersion]:
        runtime = self._runtime
        versions = runtime.store.versions(call_id[0])
        return [v for v in versions if runtime.store.token_at(Slot(v, call_id[1]).path)]

    def _search(self, call_id: Sequence[str]) -> Entry | LargeEntry | None:
        """An item whose version is not known: found if exactly one version has it."""
        holders = self._holders(call_id)
        if len(holders) != 1:
            return None
        return self._read(holders[0], call_id)

    def _read(self, version: CodeVersion, call_id: Sequence[str]) -> Entry | LargeEntry | None:
        runtime = self._runtime
        slot = Slot(version, call_id[1])
        found = runtime.reader.look(slot)
        if isinstance(found, (Entry, LargeEntry)):
            return found
        return runtime.writer.recall(slot.path)

    def _entry(
        self, call_id: Sequence[str], metadata: Mapping[str, Any] | None
    ) -> Entry | LargeEntry | None:
        """What `contains_item` found for this very call, or what stands there now."""
        runtime = self._runtime
        found = runtime.local.state.read
        if found is not None and found[0] is call_id:
            return found[1]
        namespace = metadata.get(NAMESPACE) if metadata else None
        if isinstance(namespace, str):
            return self._read(runtime.functions.at(call_id[0], namespace), call_id)
        version = runtime.functions.version(call_id[0])
        return self._read(version, call_id) if version else self._search(call_id)

    def _value(self, entry: Entry | LargeEntry) -> Any:
        if isinstance(entry, Entry):
            return entry.value()
        if self.mmap_mode is None:
            return entry.value()
        runtime = self._runtime
        asked, token = runtime.store.options.verify, entry.header.token
        signed = runtime.store.key is not None  # then no option lets unchecked bytes be unpickled
        verify = signed or asked == "always" or (asked == "first" and token not in runtime.verified)
        value = entry.map(self.mmap_mode, verify=verify)
        runtime.verified.add(token)
        return value

    def _quarantine(self, entry: Entry | LargeEntry) -> None:
        runtime = self._runtime
        runtime.local.state.read = None
        if isinstance(entry, LargeEntry):
            runtime.store.quarantine(entry)

    # -- what joblib's abstract base asks of any folder ------------------------------------------

    def _open_item(self, f: str, mode: str) -> Any:
        return Path(f).open(mode)

    def _item_exists(self, location: str) -> Any:
        return os.path.exists(location)  # noqa: PTH110  # a text

    def _move_item(self, src: str, dst: str) -> None:
        Path(src).replace(dst)

    def create_location(self, location: str) -> None:
        """Make a folder."""
        mkdirp(location)

    def _tell(
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
