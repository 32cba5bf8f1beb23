"""What a backend needs at run time, and no pickle takes along."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

from joblib_ext.calls import Writer
from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import CorruptEntryError, LargeEntry
from joblib_ext.maintenance.keeping import Keeper
from joblib_ext.settings import SharedOptions
from joblib_ext.stores.files.folders import warn_of_writers
from joblib_ext.stores.files.store import FileStore
from joblib_ext.stores.kinds import Store, open_store
from joblib_ext.stores.layout import CODE_FILE, namespace_of
from joblib_ext.stores.local_cache import LocalCache
from joblib_ext.stores.store import UNUSABLE, CodeVersion, Slot, View


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

    def is_revived(self, version: CodeVersion) -> bool:
        """Whether a folder knows this code, and newer code of the function, by their notes' times.

        An object store is not asked: it would cost requests.
        """
        written = {}
        if isinstance(self.store, FileStore):
            for known in self.store.versions(version.func_id):
                with contextlib.suppress(OSError):
                    written[known.namespace] = Path(known.folder, CODE_FILE).stat().st_mtime
        return written.get(version.namespace, math.inf) < max(written.values(), default=0.0)

    def discard(self, entry: Entry | LargeEntry, error: Exception) -> None:
        """Move an entry aside if it failed its check."""
        if isinstance(entry, LargeEntry) and isinstance(error, CorruptEntryError):
            self.store.quarantine(entry)


class _NoReader:
    """Reads nothing: what stands in the store is signed, and this process has no key."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def look(self, _slot: Slot) -> View:
        """Nothing of use."""
        self._store.events.warn_once(
            "key",
            "this process has no sign_key, which is in no pickle: set MLOPS_EXT_JOBLIB_SIGN_KEY or"
            " sign_key_file where it runs. Results are computed and not cached",
        )
        return UNUSABLE
