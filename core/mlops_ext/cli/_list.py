"""``mlops-ext list``: the frameworks found."""

from __future__ import annotations

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlops_ext.discovery import extensions

__all__ = ["list_frameworks"]


@click.command("list")
def list_frameworks() -> None:
    """Show the frameworks found, their versions, and the range that is supported."""
    table = Table(title="Frameworks", title_justify="left")
    for column in ("framework", "installed", "supported range", "known", "what it gets"):
        table.add_column(column)
    for support in extensions().frameworks():
        if support.version is None:
            known = "[dim]not installed[/]"
        else:
            known = "[green]yes[/]" if support.supported else "[red]no[/]"
        framework = support.framework
        table.add_row(
            escape(framework.name),
            escape(support.version or "-"),
            escape(framework.supported),
            known,
            escape(framework.summary),
        )
    Console().print(table)
    for problem in extensions().problems.values():
        click.echo(f"mlops-ext: {problem}", err=True)
