"""Metadata of an entry, read from its JSON when somebody asks: on most hits nobody does."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from joblib_ext.entries.entry import Entry
from joblib_ext.entries.large_entry import LargeEntry

NAMESPACE = "namespace"
"""Key under which the metadata names the code version; a `MemorizedResult` carries it along."""


class LazyMetadata(dict[str, Any]):
    """A dictionary that is filled when it is first looked into.

    Attributes:
        source: the entry, until it was asked. Set by whoever makes one: each hit does, and a
            constructor would cost it more than the rest.
    """

    __slots__ = ("source",)
    source: Entry | LargeEntry | None

    def _fill(self) -> None:
        source, self.source = self.source, None
        if source is not None:
            with contextlib.suppress(OSError, ValueError):
                self.update(source.metadata())

    def __missing__(self, key: str) -> Any:
        if self.source is None:
            raise KeyError(key)
        self._fill()
        return self[key]

    def get(self, key: str, default: Any = None) -> Any:
        """As for any dictionary."""
        self._fill()
        return super().get(key, default)

    def keys(self) -> Any:
        """As for any dictionary."""
        self._fill()
        return super().keys()

    def values(self) -> Any:
        """As for any dictionary."""
        self._fill()
        return super().values()

    def items(self) -> Any:
        """As for any dictionary."""
        self._fill()
        return super().items()

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return super().__iter__()

    def __len__(self) -> int:
        self._fill()
        return super().__len__()

    def __contains__(self, key: object) -> bool:
        self._fill()
        return super().__contains__(key)

    def __eq__(self, other: object) -> bool:
        self._fill()
        return super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __repr__(self) -> str:
        self._fill()
        return super().__repr__()

    def __reduce__(self) -> tuple[Any, ...]:
        self._fill()
        return dict, (dict(super().items()),)
