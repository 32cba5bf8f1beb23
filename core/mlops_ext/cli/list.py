"""``mlops-ext list``: the frameworks found."""

from __future__ import annotations

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlops_ext.extensions.discovery import HIDDEN, Support, extensions


@click.command("list")
def list_frameworks() -> None:
    """Show the frameworks found, their versions, and which versions are supported."""
    table = Table(title="Frameworks", title_justify="left")
    for column in ("framework", "installed", "supported versions", "what you get"):
        table.add_column(column, overflow="fold")
    for support in extensions().frameworks():
        framework = support.framework
        table.add_row(
            escape(framework.name),
            _installed(support),
            escape(framework.supported),
            escape(framework.summary),
        )
    Console().print(table)
    for problem in extensions().problems.values():
        click.echo(f"mlops-ext: {problem}", err=True)
    for hidden in extensions().hidden:
        owner = hidden.distribution or "a distribution"
        click.echo(f"mlops-ext: {HIDDEN.format(hidden.name, owner)}", err=True)


def _installed(support: Support) -> str:
    if support.version is None:
        return "[dim]not installed[/]"
    version = escape(support.version)
    return f"[green]{version}[/]" if support.supported else f"[red]{version}: not supported[/]"
