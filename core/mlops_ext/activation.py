"""Activation: patches of a framework switched on now, or when it is first imported.

Three ways in: `apply` in code, ``mlops-ext run -- CMD`` for a command and its children, and the
variable ``MLOPS_EXT_AUTOPATCH`` where an extension's entry point reaches us.

Every interpreter below ``mlops-ext run`` imports this module, so it finds extensions late.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING

import wrapt

from mlops_ext import settings
from mlops_ext.errors import MlopsExtError, UnsupportedVersionError

if TYPE_CHECKING:
    from mlops_ext.patching import PatchSet

__all__ = ["apply", "apply_on_import", "autopatch", "trigger_of"]

log = logging.getLogger(__name__)

_waiting: set[str] = set()


def apply(framework: str) -> PatchSet:
    """Apply the patches of *framework*, and return the set that reverts them.

    The result is a context manager: ``with mlops_ext.apply("kserve"): ...`` reverts at the end.

    Raises:
        UnknownNameError: no extension is written for *framework*.
        UnsupportedVersionError: the installed version is not one the extension knows.
        PatchConflictError: a target is not what was expected; nothing was changed.
    """
    from mlops_ext.discovery import extensions
    from mlops_ext.patching import PatchSet

    found = extensions()
    support = found.framework(framework)
    if support.version is not None and not support.supported:
        known = support.framework
        raise UnsupportedVersionError(known.distribution, support.version, known.supported)
    patches = PatchSet(found.patches(framework), notify=found.notify_patch)
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
    if framework in _waiting:
        return
    _waiting.add(framework)
    if module in sys.modules:
        _apply_guarded(framework)
        return

    def on_import(_: ModuleType) -> None:
        _apply_guarded(framework)

    wrapt.register_post_import_hook(on_import, module)


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
    from mlops_ext.discovery import extensions

    found = extensions().framework(framework).framework
    return framework if found.module == framework else f"{framework}={found.module}"


def _apply_guarded(framework: str) -> None:
    try:
        apply(framework)
    except MlopsExtError as error:
        log.warning("%s goes on without its patches: %s", framework, error)
    except Exception:  # inside a foreign import statement: recorded, never raised
        log.exception("%s goes on without its patches", framework)
