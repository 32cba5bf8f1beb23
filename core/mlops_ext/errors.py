"""The errors of mlops-ext: one base class, and children that keep their subject as attributes.

A message says what failed, what was found, and what to do next.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

__all__ = [
    "HistoryError",
    "InvalidSettingsError",
    "MissingExtraError",
    "MlopsExtError",
    "PatchConflictError",
    "PluginError",
    "QuantityError",
    "SettingsError",
    "TempDirError",
    "TopologyError",
    "UnknownNameError",
    "UnknownSettingError",
    "UnsupportedVersionError",
]


class MlopsExtError(Exception):
    """Base of every error that mlops-ext raises on purpose.

    It can be pickled, attributes included, so that it comes out of a worker process as it is.

    Attributes:
        exit_status: what the command line exits with when it meets this error.
    """

    exit_status: ClassVar[int] = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Rebuild without calling ``__init__``: its arguments are the subject, not `args`.

        An attribute that does not survive pickling, such as another package's error as the cause,
        is replaced by its text.
        """
        state = {name: _portable(value) for name, value in self.__dict__.items()}
        if isinstance(self, ImportError):
            state["name"] = self.name  # which ImportError keeps outside of __dict__
        return type(self).__new__, (type(self),), {**state, "args": self.args}


class SettingsError(MlopsExtError, ValueError):
    """A setting has a value that cannot be used.

    Attributes:
        setting: dotted name of the setting, as the user wrote it.
        value: what was found.
        allowed: what would have been accepted, in words.
    """

    def __init__(self, setting: str, value: object, allowed: str) -> None:
        self.setting, self.value, self.allowed = setting, value, allowed
        super().__init__(f"{setting} = {value!r} cannot be used: expected {allowed}")


class TopologyError(MlopsExtError, ValueError):
    """A description of workers, queues and pipelines cannot be used.

    Attributes:
        where: the place in it.
        found: what stands there, or the OSError of a file that cannot be opened.
        allowed: what would have been accepted, in words.
    """

    def __init__(self, where: str, found: Any, allowed: str) -> None:
        self.where, self.found, self.allowed = where, found, allowed
        is_file = isinstance(found, OSError)
        what = f"cannot be opened ({found.strerror})" if is_file else f"is {found!r}"
        super().__init__(f"{where} {what}: expected {allowed}")


class InvalidSettingsError(SettingsError):
    """Settings whose owner refuses them, or a file of settings that cannot be understood.

    Attributes:
        value: names of the settings that were given; not their values, which may be secrets.
        allowed: what is wrong, in words.
    """

    def __init__(self, setting: str, names: Iterable[str], problem: str) -> None:
        self.setting, self.value, self.allowed = setting, sorted(names), problem
        MlopsExtError.__init__(self, f"{setting} cannot be used: {problem}")


class UnknownSettingError(SettingsError):
    """A setting that nothing reads; its value is not shown, as it may be a misspelt secret.

    Attributes:
        known: the settings that exist.
    """

    def __init__(self, setting: str, name: str, known: Iterable[str]) -> None:
        self.setting, self.value, self.known = setting, None, sorted(known)
        near = nearest(name, self.known)
        self.allowed = f"did you mean {near}?" if near else f"known: {', '.join(self.known)}"
        MlopsExtError.__init__(self, f"{setting} is not a setting; {self.allowed}")


class QuantityError(MlopsExtError, ValueError):
    """A text is not a Kubernetes quantity.

    Attributes:
        text: what was found.
    """

    def __init__(self, text: object, detail: str) -> None:
        self.text = text
        super().__init__(
            f"{text!r} is not a memory size: {detail}; write a Kubernetes quantity"
            " such as 1.5Gi, 500M or 2e9"
        )


class HistoryError(MlopsExtError):
    """The history of earlier runs could not be read or written.

    Attributes:
        path: the database.
    """

    def __init__(self, path: object, detail: str, hint: str = "") -> None:
        self.path = path
        hint = hint or (
            "set memory.history to a file on a disk that can be written and has working file locks"
        )
        super().__init__(f"the history in {path} cannot be used: {detail}; {hint}")


class UnknownNameError(MlopsExtError, LookupError):
    """A name that does not exist.

    Attributes:
        kind: what sort of name it is ("framework", "queue").
        name: what was asked for.
        known: the names that exist, sorted.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        near = nearest(name, self.known)
        known = f"known: {', '.join(self.known)}" if self.known else f"there is no {kind} at all"
        hint = f"did you mean {near!r}?" if near is not None else known
        super().__init__(f"no {kind} is named {name!r}; {hint}")


class UnsupportedVersionError(MlopsExtError):
    """A distribution is installed in a version this extension does not know.

    Attributes:
        distribution: its name on the package index.
        version: the installed version.
        supported: the version specifier that is known to work.
    """

    def __init__(self, distribution: str, version: str, supported: str) -> None:
        self.distribution, self.version, self.supported = distribution, version, supported
        super().__init__(
            f"{distribution} {version} is not supported (known to work: {supported});"
            " nothing was changed. Install a supported version, or a newer mlops-ext"
        )


class MissingExtraError(MlopsExtError, ImportError):
    """A package that an optional part needs is not installed.

    Attributes:
        module: the import name that is missing.
        extra: the extra of mlops-ext that brings it.
    """

    def __init__(self, module: str, extra: str) -> None:
        self.module, self.extra = module, extra
        super().__init__(
            f"{module} is not installed; run: pip install 'mlops-ext[{extra}]'", name=module
        )


class PatchConflictError(MlopsExtError):
    """A patch's target is not what the patch was written against.

    Attributes:
        patch_id: the patch that could not be applied or reverted.
        target: the target, as ``module:attribute``.
        expected: what the patch was written against.
        found: what stands there.
    """

    def __init__(self, patch_id: str, target: str, expected: str, found: str) -> None:
        self.patch_id, self.target = patch_id, target
        self.expected, self.found = expected, found
        super().__init__(
            f"patch {patch_id}: {target} is {found}, expected {expected};"
            " nothing was changed. If another package patched it, undo that first"
        )


class PluginError(MlopsExtError):
    """A third party's extension could not be used; the others go on.

    Attributes:
        plugin: name of its entry point.
        distribution: the distribution that publishes it, or None if unknown.
        cause: what it raised.
    """

    def __init__(self, plugin: str, distribution: str | None, cause: BaseException) -> None:
        self.plugin, self.distribution, self.cause = plugin, distribution, cause
        owner = f" (from {distribution})" if distribution else ""
        if isinstance(cause, MlopsExtError):  # for the user to fix, not for the extension
            super().__init__(f"extension {plugin!r}{owner} is not used: {cause}")
            return
        super().__init__(
            f"extension {plugin!r}{owner} is broken: {type(cause).__name__}: {cause};"
            f" update or uninstall it, or set MLOPS_EXT_DISABLE={plugin}"
        )


class TempDirError(MlopsExtError, OSError):
    """A temporary directory cannot be made or written to.

    Attributes:
        path: the directory.
    """

    def __init__(self, path: object, detail: str) -> None:
        self.path = path
        super().__init__(
            f"temporary directory {path}: {detail}; free some space there, or set"
            " MLOPS_EXT_TEMP_DIR to a directory you can write to"
        )


def _portable(value: Any) -> Any:
    """*value* if it survives pickling, else its text; for an exception an error with its text."""
    import pickle

    try:
        pickle.loads(pickle.dumps(value))  # noqa: S301  # made one line before
    except Exception:  # noqa: BLE001  # whatever a foreign class does
        if isinstance(value, BaseException):
            return MlopsExtError(f"{type(value).__name__}: {value}")
        return repr(value)
    return value


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to *name* (case folded), or None if none is near."""
    import difflib  # only a misspelt name needs it; every start would pay

    by_folded = {candidate.casefold(): candidate for candidate in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None
