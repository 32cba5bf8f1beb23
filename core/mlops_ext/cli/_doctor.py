"""``mlops-ext doctor``: every fix, every check, and what is wrong."""

from __future__ import annotations

import dataclasses
import json
import sys

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlops_ext.discovery import extensions
from mlops_ext.doctor import Diagnosis, diagnose
from mlops_ext.hookspecs import Severity

__all__ = ["doctor"]

_COLOURS = {Severity.OK: "green", Severity.NOTE: "yellow", Severity.PROBLEM: "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(*, as_json: bool) -> None:
    """Show every fix: needed by the installed version or not, active or not, and why.

    Exits with 1 where something is wrong.
    """
    diagnosis = diagnose(extensions())
    if as_json:
        click.echo(json.dumps(_as_document(diagnosis), indent=2))
    else:
        _draw(diagnosis, Console())
    sys.exit(0 if diagnosis.healthy else 1)


def _as_document(diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "healthy": diagnosis.healthy,
        "frameworks": [
            {**dataclasses.asdict(s.framework), "version": s.version, "known": s.supported}
            for s in diagnosis.frameworks
        ],
        "fixes": [dataclasses.asdict(fix) for fix in diagnosis.fixes],
        "findings": [
            {**dataclasses.asdict(finding), "severity": finding.severity.value}
            for finding in diagnosis.findings
        ],
    }


def _draw(diagnosis: Diagnosis, console: Console) -> None:
    frameworks = Table(title="Frameworks", title_justify="left")
    for column in ("framework", "installed", "supported range"):
        frameworks.add_column(column)
    for support in diagnosis.frameworks:
        colour = "green" if support.supported else "dim" if support.version is None else "red"
        version = f"[{colour}]{escape(support.version or 'not installed')}[/]"
        framework = support.framework
        frameworks.add_row(escape(framework.name), version, escape(framework.supported))
    console.print(frameworks)

    fixes = Table(title="Fixes that patch a framework", title_justify="left")
    fixes.add_column("fix", no_wrap=True)
    for column in ("needed", "active"):
        fixes.add_column(column)
    fixes.add_column("what hurts without it")
    for fix in diagnosis.fixes:
        needed = {True: "[yellow]yes[/]", False: "[green]no[/]", None: "[dim]-[/]"}[fix.needed]
        state = "yes" if fix.active else "on import"
        active = f"[green]{state}[/]" if fix.active or fix.armed else "[dim]no[/]"
        why = "" if fix.needed else f" [dim]({escape(fix.why)})[/]"
        fixes.add_row(escape(fix.id), needed, active, escape(fix.reason) + why)
    console.print(fixes)
    waiting = sorted(
        {fix.framework for fix in diagnosis.fixes if fix.needed and not (fix.active or fix.armed)}
    )
    if waiting:
        flags = " ".join(f"--patch {name}" for name in waiting)
        console.print(f"activate what you need: mlops-ext run {escape(flags)} -- CMD")

    for finding in diagnosis.findings:
        colour = _COLOURS[finding.severity]
        text = escape(f"{finding.check}: {finding.message}")
        advice = escape(f" → {finding.advice}") if finding.advice else ""
        console.print(f"[{colour}]{finding.severity.value:8}[/]{text}{advice}")
    verdict = "[green]nothing is wrong[/]" if diagnosis.healthy else "[red]there are problems[/]"
    console.print(f"doctor: {verdict}")
