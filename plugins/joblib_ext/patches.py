"""What takes the place of joblib's own functions, and how the backend becomes known to joblib.

The patches themselves are data in `joblib_ext.plugin`. joblib is not imported here: a patch is
applied when joblib is.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

from joblib_ext.arguments import bind, digest
from mlops_ext.extensions.finder import on_import

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
        _apply()
    elif not _waiting:
        _waiting = True
        on_import(_TRIGGER, _apply)


def _apply() -> None:
    from joblib_ext.plugin import QUICK_ARGUMENTS, SHARED_BACKEND, UNTIMED_PUBLISHING
    from mlops_ext.errors import MlopsExtError
    from mlops_ext.patching import Outcome, PatchSet

    for patch in (
        SHARED_BACKEND,
        *QUICK_ARGUMENTS,
        UNTIMED_PUBLISHING,
    ):  # apart: one that cannot be costs no other
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


def quick_args_id(original: Callable[..., str]) -> Callable[..., str]:
    """``MemorizedFunc._get_args_id``: the digest under which a call's result is kept."""

    @functools.wraps(original)
    def _get_args_id(self: Any, *args: Any, **kwargs: Any) -> str:
        if self.ignore == []:
            arguments = bind(self.func, args, kwargs)
            found = digest(arguments) if arguments is not None else None
            if found is not None:
                return found
        return original(self, *args, **kwargs)

    return _get_args_id


def quick_filter_args(original: Callable[..., Any]) -> Callable[..., Any]:
    """``filter_args`` as `Memory` sees it: a miss asks again, for what it notes of the call."""

    @functools.wraps(original)
    def filter_args(func: Any, ignore_lst: Any, *args: Any, **kwargs: Any) -> Any:
        if ignore_lst == [] and len(args) == 2 and not kwargs:  # noqa: PLR2004  # of the call: both
            bound = bind(func, *args)
            if bound is not None:
                return bound
        return original(func, ignore_lst, *args, **kwargs)

    return filter_args


def untimed_persist_input(original: Callable[..., Any]) -> Callable[..., Any]:
    """``MemorizedFunc._persist_input`` without its warning where the backend publishes there."""

    @functools.wraps(original)
    def _persist_input(self: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(self.store_backend, "publishes_with_metadata", False):
            kwargs["this_duration_limit"] = float("inf")
        return original(self, *args, **kwargs)

    return _persist_input
