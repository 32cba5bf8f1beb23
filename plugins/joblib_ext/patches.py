"""Making the backend known to joblib, without importing joblib."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any

import wrapt

__all__ = ["NAME", "backend_factory", "register"]

log = logging.getLogger(__name__)

NAME = "shared"
_TRIGGER = "joblib.memory"
_waiting = False


def register() -> None:
    """Make ``backend="shared"`` known: now where joblib is imported, else when it is.

    It goes by the same patches that ``mlops-ext run`` applies, so that both may happen.
    """
    global _waiting
    if _TRIGGER in sys.modules:
        _apply(sys.modules[_TRIGGER])
    elif not _waiting:
        _waiting = True
        wrapt.register_post_import_hook(_apply, _TRIGGER)


def _apply(_: ModuleType) -> None:
    from joblib_ext.plugin import QUICK_ARGUMENTS, SHARED_BACKEND
    from mlops_ext.errors import MlopsExtError
    from mlops_ext.patching import Outcome, PatchSet

    for patch in (SHARED_BACKEND, *QUICK_ARGUMENTS):  # apart: one that cannot be costs no other
        try:
            (report,) = PatchSet([patch]).apply()
        except MlopsExtError as error:  # inside somebody else's import statement
            log.warning("joblib goes on without the patch %s: %s", patch.id, error)
        else:
            if patch is SHARED_BACKEND and report.outcome is Outcome.OUT_OF_RANGE:
                log.warning("joblib %s gets no shared backend: %s", report.version, report.detail)


def backend_factory(original: object) -> Any:
    """What takes the place of *original*, which is nothing, in joblib's table of backends."""
    del original
    begun = sys.modules.get("joblib_ext.backend")
    if begun is not None and not hasattr(begun, "SharedStoreBackend"):
        return _make_backend  # it was imported before joblib, which it is importing right now
    from joblib_ext.backend import SharedStoreBackend

    return SharedStoreBackend


def _make_backend() -> Any:
    """A new backend: joblib only calls what stands in its table."""
    from joblib_ext.backend import SharedStoreBackend

    return SharedStoreBackend()
