"""Fixes that teams bolt onto the MLOps frameworks they already run.

Importing this package imports no framework and changes nothing.
"""

from __future__ import annotations

TYPE_CHECKING = False  # type checkers know this name; importing typing costs milliseconds
if TYPE_CHECKING:
    from mlops_ext.activation import apply, apply_on_import, autopatch
    from mlops_ext.errors import MlopsExtError
    from mlops_ext.hookspecs import hookimpl
    from mlops_ext.patching import Patch

__all__ = [
    "MlopsExtError",
    "Patch",
    "__version__",
    "apply",
    "apply_on_import",
    "autopatch",
    "hookimpl",
]

__version__ = "0.1.0"

_HOMES = {
    "MlopsExtError": "errors",
    "Patch": "patching",
    "apply": "activation",
    "apply_on_import": "activation",
    "autopatch": "activation",
    "hookimpl": "hookspecs",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that ``import mlops_ext`` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value: object = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
