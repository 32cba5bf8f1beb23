"""Settings: the only reader of the environment and of ``[tool.mlops-ext]``.

A section of settings is a frozen dataclass that its owner defines, with the reason for each
default under its field. `load` fills it from, in this order: arguments, command-line flags,
environment variables named ``MLOPS_EXT_<SECTION>_<FIELD>``, ``[tool.mlops-ext.<section>]`` of the
nearest pyproject.toml, and the defaults. What one of our processes tells another goes through the
environment, so that no file outranks it.

A pyproject.toml is found in a folder above the current one, so another user may have put it there.
It is not read if another user than this one or root owns it or its folder, or if everybody can
write either; `untrusted_files` names those that were passed over.

A field with ``repr=False`` holds a secret: no error shows its value. A field with
``metadata=NEVER_FROM_FILE`` is refused in a file: keys do not belong there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import stat
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast

from mlops_ext.errors import InvalidSettingsError, SettingsError, UnknownSettingError, nearest

__all__ = [
    "NEVER_FROM_FILE",
    "CoreSettings",
    "Resolved",
    "environment",
    "load",
    "misspelt_files",
    "resolve",
    "sections",
    "unknown_variables",
    "untrusted_files",
]

T = TypeVar("T")

NEVER_FROM_FILE: Mapping[str, str] = types.MappingProxyType({"mlops-ext": "never from a file"})
"""``dataclasses.field(metadata=NEVER_FROM_FILE)``: the environment, an argument or a flag only."""

_PREFIX = "MLOPS_EXT_"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")
_SCALARS = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSettings:
    """Settings that concern every extension: environment ``MLOPS_EXT_<FIELD>``."""

    disable: tuple[str, ...] = ()
    """Extensions not to load, ids of patches not to apply. None: what is installed is wanted."""
    autopatch: tuple[str, ...] = ()
    """Frameworks to patch on import. None: importing a library must not change another."""
    temp_dir: Path | None = None
    """Root for temporary directories. None: the system's own, as ``tempfile`` finds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved(Generic[T]):
    """Settings, and where each came from.

    Attributes:
        value: the filled dataclass.
        sources: per field: "argument", "flag", the variable's name, the pyproject's path, or
            "default".
    """

    value: T
    sources: Mapping[str, str]


def environment() -> Mapping[str, str]:
    """The process environment. Other modules ask here and never read ``os.environ``."""
    return os.environ


def load(cls: type[T], section: str = "", *, arguments: Mapping[str, object] | None = None) -> T:
    """The settings of *section*, as an instance of the frozen dataclass *cls*.

    Args:
        cls: a frozen dataclass; its field types decide how texts are read: bool, int, float,
            str, Path, Literal, tuple[str, ...] (comma separated), Optional of these, or any class
            with a ``parse(text)`` classmethod.
        section: name below ``tool.mlops-ext``; "" for the top level.
        arguments: values given in code; None means not given.

    Raises:
        SettingsError: a value cannot be read, or the file holds a key that no field has.
    """
    return resolve(cls, section, arguments=arguments).value


def resolve(
    cls: type[T],
    section: str = "",
    *,
    arguments: Mapping[str, object] | None = None,
    flags: Mapping[str, object] | None = None,
) -> Resolved[T]:
    """Load settings as `load` does, and say where each value came from.

    Args:
        cls: as for `load`.
        section: as for `load`.
        arguments: as for `load`.
        flags: values given on a command line; None means not given.
    """
    hints = typing.get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cast("Any", cls)) if field.init]
    names = [field.name for field in fields]
    file, table = _file_section(section)
    _check_table(table, fields, section)
    _known_variables.update(_variable(section, name) for name in names)
    values: dict[str, object] = {}
    sources = dict.fromkeys(names, "default")
    for field in fields:
        name = field.name
        variable = _variable(section, name)
        for source, label, found in (
            ("argument", name, (arguments or {}).get(name)),
            ("flag", f"--{name.replace('_', '-')}", (flags or {}).get(name)),
            (variable, variable, environment().get(variable) or None),
            (str(file), _toml_name(section, name), table.get(name)),
        ):
            if found is not None:
                values[name] = _read(found, hints[name], label, secret=not field.repr)
                sources[name] = source
                break
    try:
        return Resolved(value=cls(**values), sources=sources)
    except SettingsError:
        raise
    except (TypeError, ValueError) as error:
        # The values stay out of the message: one of them may be a secret.
        raise InvalidSettingsError(section or "mlops-ext", sorted(values), str(error)) from error


def sections() -> tuple[Path | None, list[str]]:
    """The file that settings come from, and the names of its tables below ``tool.mlops-ext``."""
    file, table = _file_section("")
    return file, [name for name, value in table.items() if isinstance(value, dict)]


# The variables of every section that was asked for in this process.
_known_variables: set[str] = set()


def unknown_variables() -> list[tuple[str, str | None]]:
    """Variables named like ours that no setting reads, each with the nearest that one does.

    Sections that nobody has loaded in this process are not known: call it after `load`.
    """
    _known_variables.update(_variable("", f.name) for f in dataclasses.fields(CoreSettings))
    known = {name.removeprefix(_PREFIX) for name in _known_variables}
    found = []
    for name in sorted(environment()):
        if name.startswith(_PREFIX) and name not in _known_variables:
            near = nearest(name.removeprefix(_PREFIX), known)
            found.append((name, near and _PREFIX + near))
    return found


def untrusted_files() -> list[Path]:
    """The pyproject.toml files from here up that are not read, because of who can write them."""
    found = []
    for path in _candidates():
        with contextlib.suppress(OSError):
            if not (_trusted_status(path) or path.is_dir()):
                found.append(path)
    return found


def misspelt_files() -> list[Path]:
    """The pyproject.toml files from here up with a table ``tool.mlops_ext``, which is not read."""
    return [path for path in _candidates() if "mlops_ext" in _tool_table(path)]


def _variable(section: str, name: str) -> str:
    return _PREFIX + "_".join(filter(None, [section, name])).upper().replace("-", "_")


def _toml_name(section: str, name: str) -> str:
    return ".".join(filter(None, ["tool.mlops-ext", section, name]))


def _file_section(section: str) -> tuple[Path | None, Mapping[str, object]]:
    """The table of *section* in the nearest pyproject.toml that has ``[tool.mlops-ext]``."""
    for path in _candidates():
        tool = _tool_table(path)
        if "mlops-ext" not in tool:
            continue
        found, name = tool["mlops-ext"], "tool.mlops-ext"
        if section and isinstance(found, dict):
            found, name = found.get(section, {}), f"{name}.{section}"
        if not isinstance(found, dict):  # what stands there is not shown: it may be a secret
            raise InvalidSettingsError(name, [], f"expected a table [{name}]")
        return path, {str(key).replace("-", "_"): value for key, value in found.items()}
    return None, {}


def _candidates() -> list[Path]:
    try:
        directory = Path.cwd()
    except OSError:  # the current directory was removed
        return []
    return [folder / "pyproject.toml" for folder in (directory, *directory.parents)]


def _trusted_status(path: Path) -> os.stat_result | None:
    """The status of *path* if only this user, root, and those they allow can have written it.

    Asked before the file is opened, as a FIFO or a leased file would stop the program there.
    Windows has no such owner and mode: there every file is trusted.
    """
    found = (path.stat(), path.lstat(), path.parent.stat())
    is_safe = not hasattr(os, "geteuid") or all(
        each.st_uid in {0, os.geteuid()}
        and (stat.S_ISLNK(each.st_mode) or not each.st_mode & stat.S_IWOTH)
        for each in found  # a link's own mode says nothing
    )
    return found[0] if is_safe and stat.S_ISREG(found[0].st_mode) else None


def _read_trusted(path: Path) -> bytes:
    """Read *path*; empty if another user could have written it, or swaps it meanwhile."""
    looked_at = _trusted_status(path)
    if looked_at is None:
        return b""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags), "rb") as file:  # noqa: PTH123  # flags of our own
        same = os.path.samestat(os.fstat(file.fileno()), looked_at)
        return file.read() if same else b""


def _tool_table(path: Path) -> dict[str, object]:
    """``[tool]`` of the file *path*; empty if it has none, or is not to be read.

    A file that cannot be read or understood is an error only if it names us.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        data = _read_trusted(path)
    except OSError:
        return {}
    try:
        tool = tomllib.loads(data.decode("utf-8")).get("tool")
    except ValueError as error:  # not UTF-8, or not TOML
        if b"mlops-ext" not in data:
            return {}
        raise InvalidSettingsError(str(path), [], f"it is not valid TOML: {error}") from error
    return tool if isinstance(tool, dict) else {}


def _check_table(
    table: Mapping[str, object], fields: list[dataclasses.Field[Any]], section: str
) -> None:
    """Refuse a key that is not a setting, or that a file may not set."""
    known = {field.name: field for field in fields}
    for key, value in table.items():
        name = _toml_name(section, key)
        if key in known and known[key].metadata == NEVER_FROM_FILE:
            problem = f"it is never taken from a file; set {_variable(section, key)}"
            raise InvalidSettingsError(name, [], problem)
        if key not in known and (section or not isinstance(value, dict)):
            raise UnknownSettingError(name, key, known)


def _read(value: object, hint: Any, label: str, *, secret: bool) -> object:
    """As `_convert`; no error shows the value of a secret, nor leads to one that does."""
    try:
        return _convert(value, hint, label)
    except SettingsError as error:
        if not secret:
            raise
        problem = f"expected {error.allowed}"
    raise InvalidSettingsError(label, [], problem)


def _convert(value: object, hint: Any, label: str) -> object:
    """*value* as the type *hint* asks for."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):  # of one type and None
        if isinstance(value, str) and value.casefold() in {"none", ""}:
            return None
        return _convert(value, next(each for each in args if each is not type(None)), label)
    if origin is Literal:
        if value in args:
            return value
        raise SettingsError(label, value, f"one of {', '.join(map(str, args))}")
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise SettingsError(label, value, "a list, or a text with commas")
        texts = (item.strip() if isinstance(item, str) else item for item in items)
        return tuple(_convert(item, args[0], label) for item in texts if item != "")
    return _convert_class(value, hint, label)


def _convert_class(value: Any, hint: Any, label: str) -> object:
    if hint is bool:
        return _as_bool(value, label)
    if isinstance(hint, type) and isinstance(value, hint) and not isinstance(value, bool):
        return value
    if hasattr(hint, "parse"):
        try:
            return hint.parse(value)
        except ValueError as error:
            raise InvalidSettingsError(label, [], str(error)) from error
    if hint in _SCALARS and not isinstance(value, (bool, list, dict)):
        try:
            converted = hint(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise SettingsError(label, value, _SCALARS[hint]) from error
        if hint is int and isinstance(value, float) and converted != value:
            raise SettingsError(label, value, _SCALARS[int])
        return converted
    raise SettingsError(label, value, f"a value of type {getattr(hint, '__name__', hint)}")


def _as_bool(value: object, label: str) -> bool:
    folded = str(value).strip().casefold()  # of a bool too
    if folded in _TRUE + _FALSE:
        return folded in _TRUE
    raise SettingsError(label, value, "true or false")
