"""Which version of which function a call belongs to.

joblib asks a store for the code it keeps of a function, and compares it with the code at hand. The
answer given here is a text that learns what it is compared with, and is equal to it: versions live
side by side, so there is never a changed function to wipe. The version is then known by the
identity of the function's id, a text object that each ``MemorizedFunc`` makes for itself and
passes to each call. Two functions of one name, or two threads, can therefore not be mixed up.

Where joblib compares nothing (``call()``, a function it has seen with another store), the
``MemorizedFunc`` is found in the callers' frames.
"""

from __future__ import annotations

import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable
from types import FrameType
from typing import Any

from typing_extensions import Self

from joblib_ext.stores.files.layout import namespace_of
from joblib_ext.stores.store import CodeVersion, Store

_MOST = 4096
"""Identities kept: `Memory.eval` makes one for each call. A forgotten one is learned again."""
_FRAMES_UP = 5


class _LearningCode(str):
    """Equal to whatever code it is compared with, which it passes on."""

    __slots__ = ("_last", "_learn")
    _learn: Callable[[str], object]
    _last: str | None

    def __new__(cls, learn: Callable[[str], object]) -> Self:
        self = super().__new__(cls, "")
        self._learn, self._last = learn, None
        return self

    def __eq__(self, other: object) -> bool:
        if other is not self._last and isinstance(other, str):
            self._learn(other)
            self._last = other
        return True

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


class Functions:
    """The versions of functions that this process uses with one store."""

    __slots__ = ("_codes", "_names", "_store", "known")

    def __init__(self, store: Store) -> None:
        self._store = store
        self.known: dict[int, tuple[str, CodeVersion]] = {}
        self._codes: OrderedDict[int, tuple[str, _LearningCode]] = OrderedDict()
        self._names: dict[str, str] = {}

    def learning_code(self, func_id: str) -> str:
        """What to answer when joblib asks for the code kept of *func_id*."""
        found = self._codes.get(id(func_id))
        if found is not None and found[0] is func_id:
            return found[1]
        code = _LearningCode(lambda text: self.learn(func_id, text))
        self._codes[id(func_id)] = func_id, code
        if len(self._codes) > _MOST:
            old, _ = self._codes.popitem(last=False)
            self.known.pop(old, None)
        return code

    def learn(self, func_id: str, code: str) -> CodeVersion:
        """Note that the very text *func_id* stands for a function with this source code."""
        namespace = namespace_of(code, self._store.key)
        self._warn_of_namesake(func_id, namespace)
        version = self._store.version(func_id, namespace, code)
        self.known[id(func_id)] = func_id, version
        if len(self.known) > _MOST:
            del self.known[next(iter(self.known))]
        return version

    def version(self, func_id: str) -> CodeVersion | None:
        """The version that the very text *func_id* was last seen to stand for."""
        found = self.known.get(id(func_id))
        return found[1] if found is not None and found[0] is func_id else None

    def version_of_caller(self, func_id: str) -> CodeVersion | None:
        """The version of the ``MemorizedFunc`` that is calling, from the frames above."""
        frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # joblib does not say who calls
        for _ in range(_FRAMES_UP):
            if frame is None:
                break
            caller: Any = frame.f_locals.get("self")
            if getattr(caller, "func_id", None) is func_id and hasattr(caller, "func_code_info"):
                return self.learn(func_id, caller.func_code_info[0])
            frame = frame.f_back
        return None

    def at(self, func_id: str, namespace: str) -> CodeVersion:
        """The version of *func_id* in a namespace that is known by name."""
        return self._store.version(func_id, namespace)

    def _warn_of_namesake(self, func_id: str, namespace: str) -> None:
        """Warn, as joblib does, that one name stands for two functions; they are kept apart."""
        other = self._names.setdefault(str(func_id), namespace)
        if other == namespace:
            return
        self._names[str(func_id)] = namespace
        from joblib.memory import JobLibCollisionWarning

        message = (
            f"Possible name collisions: {func_id!r} stands for several functions."
            " Each has a namespace of its own in the cache. Cannot detect which one was meant"
            " where a result is looked up by name alone"
        )
        warnings.warn(message, JobLibCollisionWarning, stacklevel=6)
