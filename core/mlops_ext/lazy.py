"""Packages whose public names are imported when first used (PEP 562)."""

import sys

TYPE_CHECKING = False  # type checkers know this name; importing typing costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_exports(package: str, homes: "Mapping[str, str]") -> "Callable[[str], object]":
    """``__getattr__`` of *package*, which imports a public name at its first use.

    Args:
        package: the package's ``__name__``.
        homes: the module that defines each public name.
    """

    def import_name(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        import importlib

        value: object = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return import_name
