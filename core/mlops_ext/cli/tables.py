"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from mlops_ext.extensions.discovery import Support

_COLUMNS = ("framework", "installed", "supported versions", "what you get")


def frameworks_table(frameworks: Iterable[Support], *, summaries: bool) -> Table:
    """The frameworks, one a row; with *summaries* also what the extension does for each."""
    columns = _COLUMNS if summaries else _COLUMNS[:-1]
    table = Table(title="Frameworks", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for support in frameworks:
        one = support.framework
        cells = (escape(one.name), _installed(support), escape(one.supported), escape(one.summary))
        table.add_row(*cells[: len(columns)])
    return table


def _installed(support: Support) -> str:
    if support.version is None:
        return "[dim]not installed[/]"
    version = escape(support.version)
    return f"[green]{version}[/]" if support.supported else f"[red]{version}: not supported[/]"
