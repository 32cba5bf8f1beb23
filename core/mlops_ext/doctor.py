"""What ``mlops-ext doctor`` knows: every fix, every extension, and what is wrong.

Pure but for what the extensions' own checks do; the command line draws the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mlops_ext import settings
from mlops_ext.errors import nearest
from mlops_ext.extensions import activation
from mlops_ext.extensions.discovery import Extensions, Support
from mlops_ext.hookspecs import DoctorCheck, Finding, Severity
from mlops_ext.patching import Outcome, PatchReport, PatchSet

__all__ = ["Diagnosis", "Fix", "diagnose"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """A patch as ``doctor`` shows it.

    Attributes:
        id: the patch's id.
        framework: the framework's name.
        version: the installed version, or None.
        needed: whether the installed version has the fault; None if nothing is installed.
        active: whether it is applied in this process.
        armed: whether the import of its framework applies it in this process.
        disabled: whether MLOPS_EXT_DISABLE names it.
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
    disabled: bool
    process: str
    why: str
    reason: str
    upstream: str
    verified_by: str

    @property
    def is_missing(self) -> bool:
        """Whether the fault can happen in this process: nothing applies the fix here."""
        is_applied = self.active or self.armed or self.disabled or self.process
        return bool(self.needed) and not is_applied


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


def diagnose(extensions: Extensions, require: Iterable[str] = ()) -> Diagnosis:
    """Look at every extension, patch and check of *extensions*.

    Args:
        extensions: what to look at.
        require: names of frameworks whose fixes have to be active, or armed, in this process.

    Raises:
        UnknownNameError: no extension is written for a framework that *require* names.
    """
    frameworks = tuple(extensions.frameworks())
    installed = {s.framework.name for s in frameworks if s.version is not None}
    reports = PatchSet(extensions.patches()).status()
    fixes = tuple(map(_fix, reports))
    findings = [*_version_findings(frameworks), *_name_findings(extensions, frameworks)]
    findings += [_requirement(extensions.framework(name), fixes) for name in require]
    for check in extensions.doctor_checks():
        if check.framework in installed:
            findings.extend(_run(check))
    findings.extend(_extension_findings(extensions))
    findings.extend(
        _problem(f"fix.{report.patch.id}", report.detail)
        for report in reports
        if report.outcome is Outcome.CONFLICT
    )
    findings.extend(_settings_findings())  # last: each extension has loaded its settings by now
    return Diagnosis(frameworks=frameworks, fixes=fixes, findings=tuple(findings))


def _problem(check: str, message: str, advice: str = "") -> Finding:
    return Finding(check=check, severity=Severity.PROBLEM, message=message, advice=advice)


def _note(check: str, message: str, advice: str = "") -> Finding:
    return Finding(check=check, severity=Severity.NOTE, message=message, advice=advice)


def _version_findings(frameworks: tuple[Support, ...]) -> Iterator[Finding]:
    for support in frameworks:
        if support.version is not None and not support.supported:
            framework = support.framework
            yield _problem(
                f"{framework.name}.version",
                f"{framework.distribution} {support.version} is outside {framework.supported}:"
                " none of its fixes is applied",
                "install a supported version, or a newer mlops-ext",
            )


def _requirement(support: Support, fixes: tuple[Fix, ...]) -> Finding:
    """Whether every fix that the framework needs is active in this process."""
    framework = support.framework
    check, name = f"require.{framework.name}", framework.distribution
    missing = [fix.id for fix in fixes if fix.framework == framework.name and fix.is_missing]
    if support.version is None:
        return _problem(check, f"{name} is not installed")
    if not support.supported:
        return _problem(check, f"{name} {support.version} gets no fixes")
    if missing:
        message = f"{name} {support.version} needs {', '.join(missing)}: not active here"
        again = f"mlops-ext doctor --require {framework.name}"
        return _problem(check, message, f"mlops-ext run --patch {framework.name} -- {again}")
    message = f"every fix that {name} {support.version} needs is active, or will be on import"
    return Finding(check=check, severity=Severity.OK, message=message)


def _extension_findings(extensions: Extensions) -> Iterator[Finding]:
    """Find extensions that are broken, switched off, or hidden by another."""
    extensions.memory_policies()  # a hook that fails becomes one of the problems
    for _, problem in sorted(extensions.problems.items()):
        yield _problem(f"extension.{problem.plugin}", str(problem))
    for found in extensions.found:
        if found.disabled:
            message = f"extension {found.name!r} is switched off by MLOPS_EXT_DISABLE"
            yield _note(f"extension.{found.name}", message)


def _name_findings(extensions: Extensions, frameworks: tuple[Support, ...]) -> Iterator[Finding]:
    """Find names in the settings that no extension, fix or framework has: they do nothing."""
    known = {support.framework.name for support in frameworks}
    core = settings.load(settings.CoreSettings)
    names = {found.name for found in extensions.found}
    patches = {patch.id for patch in extensions.patches()}
    for name in core.disable:
        if name not in names | patches:
            message = f"disable lists {name!r}, and no extension or fix has that name"
            yield _unknown("settings.disable", message, nearest(name, names | patches))
    for entry in core.autopatch:
        name = entry.partition("=")[0]
        if name not in known:
            message = f"autopatch lists {name!r}, and no extension is written for that"
            yield _unknown("settings.autopatch", message, nearest(name, known))
    known |= {"memory", *names}  # the section of core's own policies
    file, sections = settings.sections()
    for name in sections:
        if name not in {each.replace("-", "_") for each in known}:
            message = f"no extension reads [tool.mlops-ext.{name}] in {file}"
            yield _unknown("settings.section", message, nearest(name, known))


def _settings_findings() -> Iterator[Finding]:
    """Find files that are not read, and variables and tables that have no effect."""
    for path in settings.untrusted_files():
        message = f"{path} is not read: another user could have written it"
        advice = "own the file and its folder, and let nobody else write there: chown, chmod o-w"
        yield _note("settings.file", message, advice)
    for path in settings.misspelt_files():
        message = f"[tool.mlops_ext] in {path} is not read"
        yield _unknown("settings.file", message, "[tool.mlops-ext]")
    for variable, near in settings.unknown_variables():
        yield _unknown("settings.variable", f"no setting is read from {variable}", near)


def _unknown(check: str, message: str, near: str | None) -> Finding:
    return _note(check, message, f"did you mean {near}?" if near else "")


def _run(check: DoctorCheck) -> list[Finding]:
    try:
        findings = list(check.run())
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  # plugin boundary: becomes a finding
        return [_problem(check.name, f"the check raised {type(error).__name__}: {error}")]
    for finding in findings:
        if not isinstance(finding, Finding):
            return [_problem(check.name, f"the check gave {finding!r}, expected Finding")]
    return findings


# Fields of a `Fix` that are those of its patch.
_SAME = ("id", "framework", "process", "reason", "upstream", "verified_by")


def _fix(report: PatchReport) -> Fix:
    patch, outcome = report.patch, report.outcome
    is_known = outcome not in {Outcome.NOT_INSTALLED, Outcome.OUT_OF_RANGE}
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
        version=report.version,
        needed=outcome is not Outcome.NOT_NEEDED if is_known else None,
        active=outcome is Outcome.APPLIED,
        armed=armed,
        disabled=outcome is Outcome.DISABLED,
        why=why,
        **{name: getattr(patch, name) for name in _SAME},
    )
