"""Activation: patches of a framework switched on now, or when it is first imported.

Three ways in: `apply` in code, ``mlops-ext run -- CMD`` for a command and its children, and the
variable ``MLOPS_EXT_AUTOPATCH`` where an extension's entry point reaches us.

Every interpreter below ``mlops-ext run`` imports this module, so it finds extensions late.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from mlops_ext import settings
from mlops_ext.errors import MlopsExtError, UnsupportedVersionError

if TYPE_CHECKING:
    from mlops_ext.patching import PatchSet

__all__ = ["apply", "apply_on_import", "autopatch", "is_armed", "trigger_of"]

log = logging.getLogger(__name__)

_waiting: set[str] = set()


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
    if framework in _waiting:
        return
    _waiting.add(framework)
    if module in sys.modules:
        _apply_guarded(framework)
        return

    def on_import(_: ModuleType) -> None:
        _apply_guarded(framework)

    wrapt.register_post_import_hook(on_import, module)
    sys.meta_path.insert(0, _BeforeImport(framework, module))


def is_armed(framework: str) -> bool:
    """Whether *framework*'s patches were applied, or will be, by its import in this process."""
    return framework in _waiting


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


class _BeforeImport:
    """A finder that calls a framework's ``before_import`` when its module begins to run.

    Asking whether the module is there (``importlib.util.find_spec``) is not yet an import.
    """

    def __init__(self, framework: str, module: str) -> None:
        self.framework, self.module = framework, module
        self._looking = False

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The other finders' spec of our module, with our loader around theirs."""
        del path, target
        if name != self.module or self._looking:
            return None
        self._looking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking = False
        if spec is not None and spec.loader is not None:
            loader: Any = _Announcing(spec.loader, self)
            spec.loader = loader
        return spec

    def begins(self) -> None:
        """The import begins."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        _call_before_import(self.framework)


class _Announcing(wrapt.ObjectProxy):  # type: ignore[type-arg]  # not generic at run time
    """A loader that says when its module begins to run, and steps back."""

    def __init__(self, loader: Any, finder: _BeforeImport) -> None:
        super().__init__(loader)
        self._self_finder = finder

    def exec_module(self, module: ModuleType) -> None:
        """Run *module*, whose loader is then the one it would have without us."""
        if module.__spec__ is not None:
            module.__spec__.loader = self.__wrapped__
        module.__loader__ = self.__wrapped__
        self._self_finder.begins()
        self.__wrapped__.exec_module(module)


def _call_before_import(framework: str) -> None:
    from mlops_ext.extensions.discovery import extensions

    try:
        support = extensions().framework(framework)
        module, _, function = support.framework.before_import.partition(":")
        if module and support.supported:
            getattr(importlib.import_module(module), function)()
    except Exception:  # inside a foreign import statement: recorded, never raised
        log.exception("%s: its extension could not prepare for the import", framework)


def _apply_guarded(framework: str) -> None:
    try:
        apply(framework)
    except MlopsExtError as error:
        log.warning("%s goes on without its patches: %s", framework, error)
    except Exception:  # inside a foreign import statement: recorded, never raised
        log.exception("%s goes on without its patches", framework)
