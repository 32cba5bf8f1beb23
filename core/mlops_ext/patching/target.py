"""Where a patch goes: ``module:Class.attribute`` or ``module:MAPPING[key]``, read and written raw.

Raw means as stored: a staticmethod stays a staticmethod object, and an inherited attribute is
told from one of the class's own, so that putting back is exact.
"""

from __future__ import annotations

import importlib
import inspect
import re
import types
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final


class _Missing:
    """The type of `MISSING`: nothing stands there."""

    def __repr__(self) -> str:
        return "missing"


MISSING: Final = _Missing()

_TARGET = re.compile(r"(?P<module>[\w.]+):(?P<path>[\w.]+)(\[(?P<key>[^\]]+)\])?")


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One place that holds an object: an attribute of *owner*, or an item of a mapping.

    Attributes:
        owner: the module, class or mapping.
        name: the attribute's or item's name.
        is_item: whether *owner* is a mapping.
    """

    owner: Any
    name: str
    is_item: bool = False

    def __eq__(self, other: object) -> bool:
        """Whether *other* is the same place: the same owner, not an equal one."""
        return (
            isinstance(other, Slot)
            and self.owner is other.owner
            and (self.name, self.is_item) == (other.name, other.is_item)
        )

    def __hash__(self) -> int:
        return hash((id(self.owner), self.name, self.is_item))

    def own(self) -> Any:
        """The raw object in this very place, or MISSING (an inherited one does not count)."""
        place = self.owner if self.is_item else vars(self.owner)
        return place.get(self.name, MISSING)

    def effective(self) -> Any:
        """The raw object that a look-up finds, inherited ones included, or MISSING."""
        if self.is_item:
            return self.own()
        return inspect.getattr_static(self.owner, self.name, MISSING)

    def put(self, value: Any) -> None:
        """Store *value* here; MISSING removes what stands here."""
        if self.is_item and value is MISSING:
            del self.owner[self.name]
        elif self.is_item:
            self.owner[self.name] = value
        elif value is MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, value)


def parse_target(target: str) -> tuple[str, list[str], str | None]:
    """The module, the attribute path and the item key (or None) of *target*.

    Raises:
        ValueError: *target* is not of the form ``module:attr.attr`` or ``module:attr[key]``.
    """
    match = _TARGET.fullmatch(target)
    if match is None:
        raise ValueError(
            f"target {target!r} is not of the form module:attribute or module:name[key]"
        )
    return match["module"], match["path"].split("."), match["key"]


def resolve(
    target: str,
    import_module: Callable[[str], Any] = importlib.import_module,
    get: Callable[[Any, str], Any] = getattr,
) -> Slot:
    """The slot that *target* names; imports its module.

    Args:
        target: the text.
        import_module: gives a module by its name.
        get: gives an attribute of an object.

    Raises:
        ImportError: the module cannot be imported.
        AttributeError: an owner on the path does not exist, or holds nothing by name.
    """
    module, path, key = parse_target(target)
    owner: Any = import_module(module)
    for name in path if key is not None else path[:-1]:
        owner = get(owner, name)
    if key is not None and not isinstance(owner, MutableMapping):
        raise AttributeError(f"{'.'.join(path)} is not a mapping but {type(owner).__name__}")
    if key is None and not hasattr(owner, "__dict__"):
        raise AttributeError(f"a {type(owner).__name__} has no attributes that can be replaced")
    return Slot(owner, key, is_item=True) if key is not None else Slot(owner, path[-1])


def home_of(value: Any) -> str:
    """The module that defined *value*: for a wrapper, the wrapper's own module."""
    if isinstance(value, (staticmethod, classmethod)):
        return home_of(value.__func__)
    if isinstance(value, property):
        return home_of(value.fget)
    if type(value) is types.FunctionType:
        return str(value.__globals__.get("__name__", ""))
    if type(value) is type or isinstance(value, (type, types.BuiltinFunctionType)):
        return str(getattr(value, "__module__", None) or "builtins")
    return type(value).__module__


def describe(value: Any) -> str:
    """*value* in a message: where it was defined, and its name."""
    if value is MISSING:
        return "missing"
    bare = getattr(value, "__func__", None) or getattr(value, "fget", None) or value
    name = getattr(bare, "__qualname__", None) or type(value).__qualname__
    return f"{home_of(value)}.{name}"
