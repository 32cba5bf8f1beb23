"""``mlops-ext doctor``: every fix, every check, and what is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlops_ext.cli.tables import frameworks_table
from mlops_ext.doctor import Diagnosis, Fix, diagnose
from mlops_ext.extensions.discovery import extensions
from mlops_ext.hookspecs import Severity

_COLOURS = {Severity.OK: "green", Severity.NOTE: "yellow", Severity.PROBLEM: "red"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option(
    "--require",
    multiple=True,
    metavar="NAME,...",
    help="Frameworks whose fixes must be active here: a needed fix that is not is a problem.",
)
def doctor(*, as_json: bool, require: tuple[str, ...]) -> None:
    """Show every fix: needed by the installed version or not, active or not, and why.

    Exits with 1 if something is wrong.
    """
    names = dict.fromkeys(name.strip() for text in require for name in text.split(","))
    with contextlib.redirect_stdout(sys.stderr):  # what an extension prints is no part of ours
        diagnosis = diagnose(extensions(), filter(None, names))
    if as_json:
        click.echo(json.dumps(_as_document(diagnosis), indent=2, default=lambda each: each.value))
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
        "findings": [dataclasses.asdict(finding) for finding in diagnosis.findings],
    }


def _draw(diagnosis: Diagnosis, console: Console) -> None:
    console.print(frameworks_table(diagnosis.frameworks, summaries=False))
    installed = {s.framework.name for s in diagnosis.frameworks if s.version is not None}
    fixes = [fix for fix in diagnosis.fixes if fix.framework in installed]
    missing = [fix for fix in fixes if fix.is_missing]
    _draw_fixes(fixes, console)
    if missing:
        flags = " ".join(f"--patch {name}" for name in sorted({fix.framework for fix in missing}))
        console.print(f"activate what you need: mlops-ext run {escape(flags)} -- CMD")
    if not installed:
        console.print("no framework was found: install what you use beside mlops-ext")
    for finding in diagnosis.findings:
        colour = _COLOURS[finding.severity]
        text = escape(f"{finding.check}: {finding.message}")
        advice = escape(f" → {finding.advice}") if finding.advice else ""
        console.print(f"[{colour}]{finding.severity.value:8}[/]{text}{advice}")
    verdict = "[green]nothing is wrong[/]"
    if not diagnosis.healthy:
        verdict = "[red]there are problems[/]"
    elif missing:
        number = "1 fix is" if len(missing) == 1 else f"{len(missing)} fixes are"
        verdict = f"[yellow]{number} needed and not active[/]"
    console.print(f"doctor: {verdict}")


def _draw_fixes(fixes: list[Fix], console: Console) -> None:
    """Print the fixes of installed frameworks."""
    if not fixes:
        return
    table = Table(title="Fixes that patch a framework", title_justify="left")
    table.add_column("fix, and what goes wrong without it")  # below each other: ids are long
    for column in ("needed", "active"):
        table.add_column(column, max_width=16)
    for fix in fixes:
        needed = {True: "[yellow]yes[/]", False: "[green]no[/]", None: "[dim]-[/]"}[fix.needed]
        state = "yes" if fix.active else "on import" if fix.armed else ""
        state = f"in {fix.process}" if fix.process else state
        active = f"[green]{escape(state)}[/]" if state else "[dim]no[/]"
        why = "" if fix.needed and not fix.disabled else f" [dim]({escape(fix.why)})[/]"
        table.add_row(f"[bold]{escape(fix.id)}[/]\n{escape(fix.reason)}{why}", needed, active)
    console.print(table)
