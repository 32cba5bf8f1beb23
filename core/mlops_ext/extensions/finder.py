"""Notice when a module is imported: one finder for all modules that are waited for.

Every interpreter below ``mlops-ext run`` imports this module, so it imports only what each
interpreter has loaded already.
"""

import sys
from _thread import get_ident

TYPE_CHECKING = False  # type checkers know this name; importing typing costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

armed: "dict[str, str]" = {}
"""The frameworks whose patches an import applies, each with the module that triggers them."""

_before: "dict[str, list[Callable[[], object]]]" = {}
_after: "dict[str, list[Callable[[], object]]]" = {}
_looking: "set[tuple[int, str]]" = set()


def on_import(
    module: str, after: "Callable[[], object]", before: "Callable[[], object] | None" = None
) -> None:
    """Call *after* each time that *module* has been run by an import or a reload.

    Asking whether the module is there (``importlib.util.find_spec``) is not yet an import.

    Args:
        module: its whole name.
        after: called with nothing, inside the import statement; what it raises is reported on
            standard error.
        before: called in the same way when the module is about to be run for the first time.
    """
    _after.setdefault(module, []).append(after)
    if before is not None:
        _before.setdefault(module, []).append(before)
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


def arm(
    framework: str, module: str, after: "Callable[[], object]", before: "Callable[[], object]"
) -> bool:
    """As `on_import`, and note that the import of *module* patches *framework*.

    Returns:
        False if it was armed already; then nothing changes.
    """
    if framework in armed:
        return False
    armed[framework] = module
    on_import(module, after, before)
    return True


class _Finder:
    """Finds modules that are waited for, and wraps their loaders in a `_Loader`."""

    def find_spec(
        self,
        name: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        """The other finders' spec of a module that is waited for; None for any other."""
        key = (get_ident(), name)  # a thread of its own may only look: the import must be seen
        if name not in _after or key in _looking:
            return None
        _looking.add(key)
        try:
            spec = self._of_others(name, path, target)
        finally:
            _looking.discard(key)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            loader: Any = _Loader(spec.loader, name)
            spec.loader = loader
        return spec

    def _of_others(self, *arguments: "Any") -> "ModuleSpec | None":
        for finder in list(sys.meta_path):
            find_spec = getattr(finder, "find_spec", None)
            if finder is not self and find_spec is not None:
                spec: ModuleSpec | None = find_spec(*arguments)
                if spec is not None:
                    return spec
        return None


_finder = _Finder()


class _Loader:
    """Reports when its module runs; otherwise behaves as the loader that it wraps."""

    def __init__(self, loader: "Any", name: str) -> None:
        self._loader, self._name = loader, name

    @property  # type: ignore[misc]  # what isinstance() goes by
    def __class__(self) -> "Any":  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        return type(self._loader)

    def __getattr__(self, name: str) -> "Any":
        return getattr(self._loader, name)

    def exec_module(self, module: "ModuleType") -> None:
        """Run *module*, after giving it back the loader that it would have without us."""
        spec: Any = module.__spec__
        if spec is not None and spec.loader is self:
            spec.loader = self._loader
        if getattr(module, "__loader__", None) is self:
            module.__loader__ = self._loader
        _call(_before.pop(self._name, ()))
        self._loader.exec_module(module)
        _call(_after[self._name])


def _call(functions: "Sequence[Callable[[], object]]") -> None:
    """Call each function; print what it raises, since a foreign import statement is running."""
    for function in list(functions):
        try:
            function()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # as the docstring says
            tell(f"{type(error).__name__}: {error}")


def tell(text: str) -> None:
    """Write a line to standard error, which may be closed, full, or None in a windowed process."""
    try:  # noqa: SIM105  # contextlib is not loaded in every interpreter
        sys.stderr.write(f"mlops-ext: {text}\n")
    except Exception:  # noqa: BLE001, S110  # there is nowhere to say it
        pass
