"""What a backend needs at run time: made with its first use, in each process."""

from __future__ import annotations

import threading
from typing import Any, cast

from joblib_ext.calls import Call, CallInfo, Calls, Writer
from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import LargeEntry
from joblib_ext.functions import Functions
from joblib_ext.settings import SharedOptions
from joblib_ext.stores.files.layout import warn_of_writers
from joblib_ext.stores.files.store import FileStore
from joblib_ext.stores.local_cache import LocalCache
from joblib_ext.stores.store import Reader
from mlops_ext.processes.forks import in_forked_child


class ThreadState:
    """What one thread is doing: the expected call, one that asked for nothing, the last read."""

    __slots__ = ("expected", "read", "uncached")

    def __init__(self) -> None:
        self.expected: CallInfo | None = None
        self.uncached: Call | None = None
        self.read: tuple[Any, Entry | LargeEntry] | None = None


class _PerThread(threading.local):
    """Each thread's own; a look into a thread's storage costs more than one into an object."""

    def __init__(self) -> None:
        self.state = ThreadState()


class Runtime:
    """What a backend needs at run time and does not take along when it is pickled."""

    __slots__ = ("calls", "functions", "local", "reader", "store", "verified", "writer")

    def __init__(self, location: str, options: SharedOptions) -> None:
        self.store = FileStore(location, options)
        warn_of_writers(self.store.layout, options, self.store.events)
        self.functions = Functions(self.store)
        self.writer = Writer(self.store)
        self.local = _PerThread()
        self.calls = Calls()
        self.reader: Reader = self.store
        if options.local_tier is not None:
            self.reader = LocalCache(
                options.local_tier, options.local_tier_bytes, self.store, location
            )
        self.verified: set[bytes] = set()


_building = threading.Lock()
"""Threads that use a backend first at the same time must share one state: a call that is armed in
one and looked up in another would compute without a lease."""


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
        return {name: value for name, value in vars(self).items() if name != _NAME}
