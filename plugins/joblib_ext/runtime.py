"""What a backend needs at run time: made with its first use, in each process."""

from __future__ import annotations

import threading
from typing import Any, cast

from joblib_ext.calls import Writer
from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import LargeEntry
from joblib_ext.maintenance.keeping import Keeper
from joblib_ext.settings import SharedOptions
from joblib_ext.stores.files.folders import warn_of_writers
from joblib_ext.stores.files.store import FileStore
from joblib_ext.stores.kinds import Store, open_store
from joblib_ext.stores.layout import namespace_of
from joblib_ext.stores.local_cache import LocalCache
from joblib_ext.stores.store import UNUSABLE, CodeVersion, Slot, View
from mlops_ext.processes.forks import in_forked_child


class Runtime:
    """What a backend needs at run time and does not take along when it is pickled."""

    __slots__ = ("_names", "reader", "store", "verified", "writer")

    def __init__(self, location: str, options: SharedOptions) -> None:
        self.store = open_store(location, options)
        if isinstance(self.store, FileStore):
            warn_of_writers(self.store.layout, options, self.store.events)
        self.writer = Writer(self.store, Keeper(self.store))
        self.reader: Store | LocalCache | _NoReader = self.store
        if options.key_missing:
            self.reader = _NoReader(self.store)
        elif options.local_tier is not None:
            self.reader = LocalCache(options.local_tier, options, self.store, location)
        self.verified: set[bytes] = set()
        self._names: dict[str, str] = {}

    def version(self, func_id: str, code: str) -> CodeVersion:
        """The version of *func_id* that this *code* is."""
        return self.store.version(func_id, namespace_of(code, self.store.key), code)

    def is_namesake(self, version: CodeVersion) -> bool:
        """Whether this process has used another function of that name, last time."""
        name = str(version.func_id)
        other, self._names[name] = self._names.get(name), version.namespace
        return other not in (None, version.namespace)

    def discard(self, entry: Entry | LargeEntry) -> None:
        """Move an entry aside that did not verify."""
        if isinstance(entry, LargeEntry):
            self.store.quarantine(entry)


class _NoReader:
    """Reads nothing: what stands in the store is signed, and this process has no key."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def look(self, slot: Slot) -> View:
        """Nothing of use."""
        del slot
        self._store.events.warn_once(
            "key",
            "this process has no sign_key, which is in no pickle: set MLOPS_EXT_JOBLIB_SIGN_KEY or"
            " sign_key_file where it runs. Results are computed and not cached",
        )
        return UNUSABLE


# Threads that use a backend first at the same time must share one state.
_building = threading.Lock()


@in_forked_child
def _after_fork() -> None:
    global _building
    _building = threading.Lock()


class _Made:
    """An attribute that is made with its first use and then found in the instance at once."""

    def __get__(self, backend: HasRuntime | None, owner: type) -> Any:
        if backend is None:
            return self
        made = vars(backend)
        with _building:
            if _NAME not in made:
                made[_NAME] = Runtime(backend.location, backend.options or SharedOptions())
            return made[_NAME]


_NAME = "_runtime"


class HasRuntime:
    """Holds what a backend needs at run time and does not take along when it is pickled."""

    _runtime: Runtime = cast("Runtime", _Made())
    location: str
    options: SharedOptions | None

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != _NAME}
        if self.options is not None:
            state["options"] = self.options.without_secrets()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        if self.options is not None:
            self.options = self.options.with_secrets()
