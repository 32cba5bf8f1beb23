"""``mlops-ext list``: the frameworks found."""

from __future__ import annotations

import click
from rich.console import Console

from mlops_ext.cli.tables import frameworks_table
from mlops_ext.extensions.discovery import extensions


@click.command("list")
def list_frameworks() -> None:
    """Show the frameworks found, their versions, and which versions are supported."""
    Console().print(frameworks_table(extensions().frameworks(), summaries=True))
    for problem in extensions().problems.values():
        click.echo(f"mlops-ext: {problem}", err=True)
