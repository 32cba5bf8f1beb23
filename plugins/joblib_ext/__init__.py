"""A cache that many machines can share: ``Memory(location, backend="shared")``.

Importing this package makes the backend known to joblib: at once where joblib is imported, else
as soon as it is. joblib itself is not imported.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from joblib_ext.patches import register
from mlops_ext.lazy import lazy_exports

if TYPE_CHECKING:
    from joblib_ext.backend import SharedStoreBackend
    from joblib_ext.memorized import cache
    from joblib_ext.settings import SharedOptions

__all__ = ["SharedOptions", "SharedStoreBackend", "cache", "register"]

_HOMES = {
    "SharedOptions": "joblib_ext.settings",
    "SharedStoreBackend": "joblib_ext.backend",
    "cache": "joblib_ext.memorized",
}

__getattr__ = lazy_exports(__name__, _HOMES)

register()
