"""What takes the place of joblib's own functions, and how the backend becomes known to joblib.

The patches themselves are data in `joblib_ext.plugin`. joblib is not imported here: a patch is
applied when joblib is.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from joblib_ext.arguments import bind, digest
from mlops_ext.extensions.finder import on_import

log = logging.getLogger(__name__)

_TRIGGER = "joblib.memory"
_waiting = False
_SECRETS = ("sign_key", "storage_options")


def register() -> None:
    """Make ``backend="shared"`` known: now where joblib is imported, else when it is.

    It goes by the same patches that ``mlops-ext run`` applies, so that both may happen.
    """
    global _waiting
    if _TRIGGER in sys.modules:
        _apply()
    elif not _waiting:
        _waiting = True
        on_import(_TRIGGER, _apply)


def _apply() -> None:
    from joblib_ext.plugin import ARGUMENTS, BACKEND
    from mlops_ext import settings
    from mlops_ext.errors import MlopsExtError
    from mlops_ext.patching import Outcome, PatchSet

    disabled = settings.load(settings.CoreSettings).disable
    quick = tuple(patch for patch in ARGUMENTS if patch.id not in disabled)
    for patches in filter(None, (BACKEND, quick)):  # one that fails costs no other
        try:
            reports = PatchSet(patches).apply()
        except MlopsExtError as error:  # inside somebody else's import statement
            log.warning("joblib goes on without the patch %s: %s", patches[0].id, error)
            continue
        for report in reports[:1]:
            if patches is BACKEND and report.outcome is Outcome.OUT_OF_RANGE:
                log.warning("joblib %s gets no shared backend: %s", report.version, report.detail)


def backend_factory(_original: object) -> Any:
    """What takes the place of nothing in joblib's table of backends.

    joblib only calls it. The backend is imported then: it may be what is importing joblib now.
    """
    return _make_backend


def _make_backend() -> Any:
    """A new backend."""
    from joblib_ext.backend import SharedStoreBackend

    return SharedStoreBackend()


def quick_args_id(original: Callable[..., str]) -> Callable[..., str]:
    """``MemorizedFunc._get_args_id``: the digest under which a call's result is kept."""

    @functools.wraps(original)
    def _get_args_id(self: Any, *args: Any, **kwargs: Any) -> str:
        if type(self.ignore) is list:
            arguments = bind(self.func, args, kwargs, self.ignore)
            found = digest(arguments) if arguments is not None else None
            if found is not None:
                return found
        return original(self, *args, **kwargs)

    return _get_args_id


def adopting_init(original: Callable[..., None]) -> Callable[..., None]:
    """``MemorizedFunc.__init__``: a cached function whose store is shared becomes one of ours."""

    @functools.wraps(original)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807  # upstream's name
        original(self, *args, **kwargs)
        if getattr(self.store_backend, "adopts", False):
            from joblib_ext.memorized import OURS

            self.__class__ = OURS.get(type(self), type(self))

    return __init__


def secretless_getstate(original: Callable[..., Any]) -> Callable[..., Any]:
    """``Memory.__getstate__`` without the keys among the backend's options."""

    @functools.wraps(original)
    def __getstate__(self: Any) -> Any:  # noqa: N807  # upstream's name
        state = original(self)
        if getattr(self.store_backend, "adopts", False):
            options = state["backend_options"]
            state["backend_options"] = {
                name: value for name, value in options.items() if name not in _SECRETS
            }
        return state

    return __getstate__


def default_backend(original: Callable[..., Any]) -> Callable[..., Any]:
    """``_store_backend_factory``: where the settings say so, no backend means the shared one."""

    @functools.wraps(original)
    def _store_backend_factory(backend: Any, location: Any, *args: Any, **kwargs: Any) -> Any:
        if backend == "local" and isinstance(location, (str, Path)):
            from joblib_ext.settings import SharedOptions
            from mlops_ext import settings

            backend = settings.load(SharedOptions, "joblib").backend
        return original(backend, location, *args, **kwargs)

    return _store_backend_factory
