"""The hooks an extension can implement, and the plain data that crosses them.

An extension publishes an entry point in group ``mlops_ext`` that names a module; functions of
that module marked with `hookimpl` answer these hooks. The module must not import the framework
it extends: it is loaded by ``mlops-ext list`` and ``doctor`` too.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pluggy

from mlops_ext.versions import check_specifier

if TYPE_CHECKING:
    from mlops_ext.memory import MemoryPolicy
    from mlops_ext.patching import Patch, PatchReport

__all__ = ["PROJECT", "DoctorCheck", "Finding", "Framework", "Severity", "hookimpl"]

PROJECT = "mlops_ext"
"""Name of the pluggy project and of the entry point group."""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """A framework that an extension is written for.

    Attributes:
        name: the name users type ("zenml").
        distribution: the distribution that carries it ("zenml").
        supported: version specifier of the releases the extension is tested with.
        extension: import package of the extension ("zenml_ext").
        summary: what the extension does for it, in one line.
        module: top-level module whose import triggers its patches; "" means *name*.
        before_import: ``module:function`` that is called with nothing when the import of
            *module* begins in a process that waits for it to apply the patches; "" for none.
    """

    name: str
    distribution: str
    supported: str
    extension: str
    summary: str
    module: str = ""
    before_import: str = ""

    def __post_init__(self) -> None:
        """Refuse a specifier that packaging cannot read."""
        check_specifier("Framework.supported", self.supported)
        if not self.module:
            object.__setattr__(self, "module", self.name)


class Severity(enum.Enum):
    """How much a finding of ``doctor`` matters."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of ``mlops-ext doctor``.

    Attributes:
        check: name of the check that found it.
        severity: a PROBLEM makes ``doctor`` exit with 1.
        message: what was found, in one sentence.
        advice: what to do next, or "".
    """

    check: str
    severity: Severity
    message: str
    advice: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorCheck:
    """A check that ``mlops-ext doctor`` runs.

    Attributes:
        name: dotted name ("zenml.temp-dir").
        framework: name of the framework it is about; it runs only if that is installed.
        run: returns the findings; what it raises becomes a problem of its own.
    """

    name: str
    framework: str
    run: Callable[[], Iterable[Finding]]


class Hooks:
    """The hook specifications; several parties may implement each."""

    @hookspec
    def mlops_ext_frameworks(self) -> Iterable[Framework]:  # type: ignore[empty-body]  # a specification
        """Return the frameworks this extension is written for."""

    @hookspec
    def mlops_ext_patches(self) -> Iterable[Patch]:  # type: ignore[empty-body]  # a specification
        """Return the patches this extension can apply, as data."""

    @hookspec
    def mlops_ext_memory_policies(self) -> Mapping[str, MemoryPolicy]:  # type: ignore[empty-body]  # a specification
        """Return named memory policies; a later registration of a name wins."""

    @hookspec
    def mlops_ext_doctor_checks(self) -> Iterable[DoctorCheck]:  # type: ignore[empty-body]  # a specification
        """Return checks for ``mlops-ext doctor``."""

    @hookspec
    def mlops_ext_patch_applied(self, report: PatchReport) -> None:
        """Called after a patch was applied, refused or reverted."""
