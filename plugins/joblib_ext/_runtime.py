"""What a backend needs at run time: made with its first use, in each process."""

from __future__ import annotations

import os
import threading
import weakref
from typing import Any

from joblib_ext._call import Call, CallInfo
from joblib_ext._entry import Entry
from joblib_ext._functions import Functions
from joblib_ext._large import LargeEntry
from joblib_ext._options import SharedOptions
from joblib_ext._store import Store
from joblib_ext._tier import LocalTier
from joblib_ext._trust import warn_of_writers
from joblib_ext._writer import Writer

__all__ = ["HasRuntime", "Runtime"]


class _PerThread(threading.local):
    """What one thread has under way: the armed call, a forced one, and what it read last."""

    armed: CallInfo | None = None
    forced: Call | None = None
    found: tuple[Any, Entry | LargeEntry] | None = None


class Runtime:
    """What a backend needs at run time and does not take along when it is pickled."""

    __slots__ = ("calls", "functions", "local", "store", "tier", "verified", "writer")

    def __init__(self, location: str, options: SharedOptions) -> None:
        self.store = Store(location, options)
        warn_of_writers(self.store.layout, options, self.store.events)
        self.functions = Functions(self.store.layout, options.sign_key)
        self.writer = Writer(self.store)
        self.local = _PerThread()
        self.calls: weakref.WeakValueDictionary[int, Call] = weakref.WeakValueDictionary()
        self.tier = (
            LocalTier(options.local_tier, options.local_tier_bytes, self.store)
            if options.local_tier is not None
            else None
        )
        self.verified: set[bytes] = set()


_building = threading.Lock()
"""Threads that use a backend first at the same time must share one state: a call that is armed in
one and looked up in another would compute without a claim."""


def _after_fork_in_child() -> None:
    global _building
    _building = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


class HasRuntime:
    """Holds what is not part of a backend's state, outside of its ``__dict__``."""

    __slots__ = ("_runtime",)
    _runtime: Runtime
    location: str
    options: SharedOptions | None

    @property
    def _run(self) -> Runtime:
        try:
            return self._runtime
        except AttributeError:
            with _building:
                if not hasattr(self, "_runtime"):
                    self._runtime = Runtime(self.location, self.options or SharedOptions())
                return self._runtime
