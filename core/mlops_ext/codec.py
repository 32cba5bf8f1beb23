"""Frozen dataclasses to JSON and back, so that a new field cannot be forgotten on the way."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def encode(value: Any) -> Any:
    """Turn a dataclass into what `json.dumps` takes; `decode` turns it back.

    Fields may be dataclasses, tuples, mappings, enums with a ``str`` base, and subclasses of
    ``int``, ``float`` and ``str``.
    """
    return dataclasses.asdict(value)


def decode(cls: type[T], data: Any) -> T:
    """Rebuild a value of type *cls* from *data*, which `encode` and JSON made of it.

    Fields that *data* lacks take their defaults: text of an older release stays readable.

    Raises:
        TypeError, ValueError, KeyError: *data* is not what *cls* describes.
    """
    if dataclasses.is_dataclass(cls):
        if not isinstance(data, Mapping):
            raise TypeError(f"{cls.__name__}: a mapping is needed; found {data!r}")
        hints = typing.get_type_hints(cls)
        return cls(**{name: _field(hints[name], value) for name, value in data.items()})
    value: T = _field(cls, data)
    return value


def _field(hint: Any, data: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        (inner,) = (a for a in arguments if a is not type(None))
        return None if data is None else _field(inner, data)
    if origin is tuple:
        fixed = arguments if arguments[1:] != (...,) else arguments[:1] * len(data)
        return tuple(_field(a, item) for a, item in zip(fixed, data, strict=True))
    if dataclasses.is_dataclass(hint):
        return decode(typing.cast("type[Any]", hint), data)
    if hint is Any or origin is not None or isinstance(data, hint):
        return data
    make: Any = hint
    return make(data)
