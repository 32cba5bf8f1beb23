"""A cache that many machines can share: ``Memory(location, backend="shared")``.

Importing this package makes the backend known to joblib: at once where joblib is imported, else
as soon as it is. joblib itself is not imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joblib_ext.patches import register

if TYPE_CHECKING:
    from joblib_ext.backend import SharedStoreBackend
    from joblib_ext.settings import SharedOptions

__all__ = ["SharedOptions", "SharedStoreBackend", "register"]

_HOMES = {
    "SharedOptions": "joblib_ext.settings",
    "SharedStoreBackend": "joblib_ext.backend",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name == "SharedStoreBackend":
        import_module("joblib")  # its import asks for the backend, which must not be half there
    return getattr(import_module(_HOMES[name]), name)


register()
