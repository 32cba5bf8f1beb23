"""What ``mlops-ext doctor`` knows: every fix, every extension, and what is wrong.

Pure but for what the extensions' own checks do; the command line draws the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlops_ext import settings
from mlops_ext.errors import nearest
from mlops_ext.extensions import activation
from mlops_ext.extensions.discovery import Extensions, Support
from mlops_ext.hookspecs import DoctorCheck, Finding, Severity
from mlops_ext.patching import Outcome, PatchReport, PatchSet

__all__ = ["Diagnosis", "Fix", "diagnose"]

_MEMORY = "memory"
"""The section of core's own memory policies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """A patch as ``doctor`` shows it.

    Attributes:
        id: the patch's id.
        framework: the framework's name.
        version: the installed version, or None.
        needed: whether the installed version has the fault; None where nothing is installed.
        active: whether it is applied in this process.
        armed: whether the import of its framework applies it in this process.
        process: the kind of process that applies it to itself, or "".
        why: one sentence.
        reason: what hurts without it.
        upstream: link to the fault upstream, or "".
        verified_by: the test that proves it.
    """

    id: str
    framework: str
    version: str | None
    needed: bool | None
    active: bool
    armed: bool
    process: str
    why: str
    reason: str
    upstream: str
    verified_by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All that ``doctor`` found.

    Attributes:
        frameworks: the frameworks and their support.
        fixes: every patch.
        findings: what the checks found, and what is wrong with extensions and versions.
    """

    frameworks: tuple[Support, ...]
    fixes: tuple[Fix, ...]
    findings: tuple[Finding, ...]

    @property
    def healthy(self) -> bool:
        """Whether no finding is a problem."""
        return all(finding.severity is not Severity.PROBLEM for finding in self.findings)


def diagnose(extensions: Extensions) -> Diagnosis:
    """Look at every extension, patch and check of *extensions*."""
    frameworks = tuple(extensions.frameworks())
    installed = {s.framework.name for s in frameworks if s.version is not None}
    reports = PatchSet(extensions.patches()).status()
    findings = [*_version_findings(frameworks), *_name_findings(extensions, frameworks)]
    for check in extensions.doctor_checks():
        if check.framework in installed:
            findings.extend(_run(check))
    extensions.memory_policies()  # a hook that fails becomes one of the problems
    findings.extend(
        Finding(check=f"extension.{name}", severity=Severity.PROBLEM, message=str(problem))
        for name, problem in sorted(extensions.problems.items())
    )
    findings.extend(
        Finding(
            check=f"extension.{found.name}",
            severity=Severity.NOTE,
            message=f"extension {found.name!r} is switched off by MLOPS_EXT_DISABLE",
        )
        for found in extensions.found
        if found.disabled
    )
    findings.extend(
        Finding(
            check=f"extension.{found.name}",
            severity=Severity.PROBLEM,
            message=f"extension {found.name!r} of {found.distribution or 'a distribution'} is not"
            " used: another distribution, earlier on sys.path, has one of that name",
            advice="uninstall or rename the other one",
        )
        for found in extensions.hidden
    )
    findings.extend(
        Finding(check=f"fix.{r.patch.id}", severity=Severity.PROBLEM, message=r.detail)
        for r in reports
        if r.outcome is Outcome.CONFLICT
    )
    findings.extend(_settings_findings())  # last: each extension has loaded its settings by now
    return Diagnosis(
        frameworks=frameworks,
        fixes=tuple(_fix(report) for report in reports),
        findings=tuple(findings),
    )


def _version_findings(frameworks: tuple[Support, ...]) -> Iterator[Finding]:
    for support in frameworks:
        if support.version is not None and not support.supported:
            framework = support.framework
            yield Finding(
                check=f"{framework.name}.version",
                severity=Severity.PROBLEM,
                message=f"{framework.distribution} {support.version} is outside"
                f" {framework.supported}: nothing of it is patched",
                advice="install a supported version, or a newer mlops-ext",
            )


def _name_findings(extensions: Extensions, frameworks: tuple[Support, ...]) -> Iterator[Finding]:
    """Names in the settings that nobody knows: what they were to do does not happen."""
    known = {support.framework.name for support in frameworks}
    core = settings.load(settings.CoreSettings)
    names = {found.name for found in extensions.found}
    for name in core.disable:
        if name not in names:
            message = f"disable lists {name!r}, and no extension has that name"
            yield _unknown("settings.disable", message, nearest(name, names))
    for entry in core.autopatch:
        name = entry.partition("=")[0]
        if name not in known:
            message = f"autopatch lists {name!r}, and no extension is written for that"
            yield _unknown("settings.autopatch", message, nearest(name, known))
    known |= {_MEMORY, *(found.name for found in extensions.found)}
    file, sections = settings.sections()
    for name in sections:
        if name not in {each.replace("-", "_") for each in known}:
            message = f"no extension reads [tool.mlops-ext.{name}] in {file}"
            yield _unknown("settings.section", message, nearest(name, known))


def _settings_findings() -> Iterator[Finding]:
    """Files that are not read, and variables and tables that nothing reads."""
    for path in settings.untrusted_files():
        message = f"{path} is not read: another user could have written it"
        advice = "own it and its folder, and let not everybody write there"
        yield Finding(check="settings.file", severity=Severity.NOTE, message=message, advice=advice)
    for path in settings.misspelt_files():
        message = f"[tool.mlops_ext] in {path} is not read"
        yield _unknown("settings.file", message, "[tool.mlops-ext]")
    for variable, near in settings.unknown_variables():
        yield _unknown("settings.variable", f"no setting is read from {variable}", near)


def _unknown(check: str, message: str, near: str | None) -> Finding:
    advice = f"did you mean {near}?" if near else ""
    return Finding(check=check, severity=Severity.NOTE, message=message, advice=advice)


def _run(check: DoctorCheck) -> list[Finding]:
    try:
        findings = list(check.run())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # plugin boundary: becomes a finding
        message = f"the check raised {type(error).__name__}: {error}"
        return [Finding(check=check.name, severity=Severity.PROBLEM, message=message)]
    for finding in findings:
        if not isinstance(finding, Finding):
            message = f"the check gave {finding!r}, expected Finding"
            return [Finding(check=check.name, severity=Severity.PROBLEM, message=message)]
    return findings


def _fix(report: PatchReport) -> Fix:
    patch, outcome = report.patch, report.outcome
    needed = {
        Outcome.NOT_INSTALLED: None,
        Outcome.NOT_NEEDED: False,
        Outcome.OUT_OF_RANGE: None,
    }.get(outcome, True)
    is_waiting = outcome is Outcome.NOT_APPLIED and not patch.process
    armed = activation.is_armed(patch.framework) and is_waiting
    how = f"activate it with: mlops-ext run --patch {patch.framework} -- CMD"
    if patch.process:
        how = f"applied in {patch.process}"
    why = report.detail or {
        Outcome.APPLIED: "applied in this process",
        Outcome.NOT_APPLIED: f"applied when {patch.framework} is imported" if armed else how,
        Outcome.NOT_INSTALLED: f"{patch.distribution} is not installed",
    }.get(outcome, outcome.value)
    return Fix(
        id=patch.id,
        framework=patch.framework,
        version=report.version,
        needed=needed,
        active=outcome is Outcome.APPLIED,
        armed=armed,
        process=patch.process,
        why=why,
        reason=patch.reason,
        upstream=patch.upstream,
        verified_by=patch.verified_by,
    )
