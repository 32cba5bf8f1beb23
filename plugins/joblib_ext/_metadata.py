"""Metadata of an entry, read from its JSON when somebody asks: on most hits nobody does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["NAMESPACE", "LazyMetadata"]

NAMESPACE = "namespace"
"""Key under which the metadata names the code version; a `MemorizedResult` carries it along."""


class LazyMetadata(dict[str, Any]):
    """A dictionary that is filled when it is first looked into."""

    __slots__ = ("_source",)

    def __init__(self, source: Callable[[], dict[str, Any]]) -> None:  # the dict is empty as it is
        self._source: Callable[[], dict[str, Any]] | None = source

    def _fill(self) -> None:
        if self._source is not None:
            source, self._source = self._source, None
            self.update(source())

    def __missing__(self, key: str) -> Any:
        if self._source is None:
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
