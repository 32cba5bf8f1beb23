"""Activation: patches of a framework switched on now, or when it is first imported.

Three ways in: `apply` in code, ``mlops-ext run -- CMD`` for a command and its children, and the
variable ``MLOPS_EXT_AUTOPATCH`` where an extension's entry point reaches us.

An interpreter below ``mlops-ext run`` imports this module only once a framework is imported.
"""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mlops_ext import settings
from mlops_ext.errors import MlopsExtError, UnsupportedVersionError
from mlops_ext.extensions import finder

if TYPE_CHECKING:
    from mlops_ext.patching import PatchSet

__all__ = ["apply", "apply_on_import", "autopatch", "is_armed", "trigger_of"]

log = logging.getLogger(__name__)


def apply(framework: str, *, process: str = "") -> PatchSet:
    """Apply the patches of *framework*, and return the set that reverts them.

    The result is a context manager: ``with mlops_ext.apply("kserve"): ...`` reverts at the end.

    Args:
        framework: its name.
        process: only the patches for this kind of process (`Patch.process`).

    Raises:
        UnknownNameError: no extension is written for *framework*.
        UnsupportedVersionError: the installed version is not one the extension knows.
        PatchConflictError: a target is not what was expected; nothing was changed.
    """
    from mlops_ext.extensions.discovery import extensions
    from mlops_ext.patching import PatchSet

    found = extensions()
    support = found.framework(framework)
    if support.version is not None and not support.supported:
        known = support.framework
        raise UnsupportedVersionError(known.distribution, support.version, known.supported)
    chosen = (patch for patch in found.patches(framework) if patch.process == process)
    patches = PatchSet(chosen, notify=found.notify_patch)
    patches.apply()
    return patches


def apply_on_import(framework: str, module: str | None = None) -> None:
    """Apply the patches of *framework* as soon as *module* is imported, at once if it is.

    A failure is logged, not raised: it would come out of somebody else's ``import`` statement.

    Args:
        framework: its name.
        module: the module that triggers, by default the one named like the framework.
    """
    module = module or framework
    is_imported = module in sys.modules
    is_new = finder.arm(
        framework, module, lambda: apply_guarded(framework), lambda: prepare_for_import(framework)
    )
    if is_new and is_imported:
        apply_guarded(framework)


def is_armed(framework: str) -> bool:
    """Whether the import of *framework*, which is still to come, applies its patches."""
    return framework in finder.armed and finder.armed[framework] not in sys.modules


def autopatch(names: Iterable[str] | None = None) -> None:
    """Arm the frameworks that ``MLOPS_EXT_AUTOPATCH`` (or *names*) lists.

    A name may carry its trigger: ``kserve`` or ``my-framework=my_module``.
    """
    if names is None:
        try:
            names = settings.load(settings.CoreSettings).autopatch
        except MlopsExtError as error:
            log.warning("no patch was activated: %s", error)
            return
    for name in names:
        framework, _, module = name.partition("=")
        apply_on_import(framework, module or None)


def trigger_of(framework: str) -> str:
    """The entry of ``MLOPS_EXT_AUTOPATCH`` that arms *framework*.

    Raises:
        UnknownNameError: no extension is written for *framework*.
    """
    from mlops_ext.extensions.discovery import extensions

    found = extensions().framework(framework).framework
    return framework if found.module == framework else f"{framework}={found.module}"


def prepare_for_import(framework: str) -> None:
    """Call what *framework*'s extension wants done before the framework is imported."""
    from mlops_ext.extensions.discovery import extensions

    try:
        support = extensions().framework(framework)
        module, _, function = support.framework.before_import.partition(":")
        if module and support.supported:
            getattr(importlib.import_module(module), function)()
    except KeyboardInterrupt:
        raise
    except BaseException:  # inside a foreign import statement: recorded, never raised
        log.exception("%s is imported, but its extension could not prepare for that", framework)


def apply_guarded(framework: str) -> None:
    """Apply the patches inside a foreign import statement: log a failure, never raise it."""
    try:
        apply(framework)
    except MlopsExtError as error:
        log.warning("%s is used without its patches: %s", framework, error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # as the docstring says
        if type(error).__name__ == "_DeadlockError":
            _apply_later(framework)
        else:
            log.exception("%s is used without its patches", framework)


def _apply_later(framework: str) -> None:
    """Apply the patches when the modules that they change have been imported.

    Another thread imports such a module, and waits for the import that this one is in: Python
    refuses to wait for it here.
    """
    from mlops_ext.extensions.discovery import extensions

    for module in {patch.module for patch in extensions().patches(framework)} - sys.modules.keys():
        finder.on_import(module, lambda: apply_guarded(framework))
