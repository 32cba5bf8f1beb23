"""``mlops-ext joblib``: what is in a shared cache, whether it is whole, and cleaning it up."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from joblib_ext.maintenance.stats import Stats

__all__ = ["joblib"]

_PATH = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def joblib() -> None:
    """Look after a cache that joblib's "shared" backend keeps."""


@joblib.command()
@click.argument("path", type=_PATH)
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), help="Draw size and age.")
@click.option("--json", "as_json", is_flag=True, help="Print figures for programs.")
def stats(path: Path, plot: Path | None, *, as_json: bool) -> None:
    """Entries, size and use by function and version; what went wrong and was repaired."""
    from joblib_ext.maintenance.stats import find_store, statistics

    with _progress("Reading", hidden=as_json) as progress:
        found = statistics(find_store(path), progress)
    if plot is not None:
        from joblib_ext.maintenance.plot import draw

        draw(found, plot)
    if as_json:
        _print_json(found)
    else:
        _print_table(found, plot)


@joblib.command()
@click.argument("path", type=_PATH)
@click.option("--no-repair", is_flag=True, help="Only say what does not verify.")
@click.option("--sign-key", envvar="MLOPS_EXT_JOBLIB_SIGN_KEY", help="Key of a signed cache.")
def verify(path: Path, *, no_repair: bool, sign_key: str | None) -> None:
    """Check every byte of every entry; move aside what is damaged. Exit 1 if something was."""
    from joblib_ext.maintenance.stats import find_store, verify_entries

    store = find_store(path, sign_key=sign_key.encode() if sign_key else None)
    with _progress("Verifying") as progress:
        found = verify_entries(store, repair=not no_repair, progress=progress)
    click.echo(
        f"{found.good} entries verify, {len(found.corrupt)} do not, {found.repaired} moved aside"
    )
    for corrupt in found.corrupt:
        click.echo(f"  {corrupt}")
    if found.corrupt:
        raise SystemExit(1)


@joblib.command()
@click.argument("path", type=_PATH)
@click.option("--min-age", default=60.0, show_default=True, help="Seconds an orphan is unchanged.")
@click.option("--lease", default=5.0, show_default=True, help="Seconds a silent lease is watched.")
def gc(path: Path, min_age: float, lease: float) -> None:
    """Remove what killed processes left, leases of dead owners, and what was moved aside."""
    from joblib_ext.maintenance.garbage import collect_garbage
    from joblib_ext.maintenance.stats import find_store

    store = find_store(path, lease_s=lease)
    with _progress("Collecting") as progress:
        done = collect_garbage(store, min_age_s=min_age, progress=progress)
    click.echo(
        f"removed {done.orphans} orphans, {done.leases} dead leases, {done.corrupt} damaged files,"
        f" {done.trash} cleared files and folders, {done.folders} empty versions"
    )


@joblib.command()
@click.argument("path", type=_PATH)
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(path: Path, *, yes: bool) -> None:
    """Remove all entries. Running programs go on, and compute anew."""
    from joblib_ext.maintenance.stats import find_store
    from joblib_ext.stores.files.trash import clear_now

    store = find_store(path)
    if not yes:
        click.confirm(f"Remove everything in {store.layout.root}?", abort=True)
    removed = clear_now(store)
    click.echo(f"removed {removed} files and folders")


@contextlib.contextmanager
def _progress(text: str, *, hidden: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on the error output, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(
        console=console, transient=True, disable=hidden or not console.is_terminal
    ) as bar:
        task = bar.add_task(text)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def _print_json(found: Stats) -> None:
    import json

    versions = [
        {
            "function": version.function,
            "namespace": version.namespace,
            "entries": version.entries,
            "bytes": version.size,
            "used_again": version.used_again,
            "last_used": version.last_used,
        }
        for version in found.versions
    ]
    document = {
        "entries": found.entries,
        "bytes": found.size,
        "leases": found.leases,
        "orphans": found.orphans,
        "corrupt": found.corrupt,
        "trash": found.trash,
        "events": dict(found.events),
        "versions": versions,
    }
    click.echo(json.dumps(document, indent=2))


def _print_table(found: Stats, plot: Path | None) -> None:
    import datetime as dt

    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("function", "version", "entries", "size", "used again", "last used")
    table.columns[0].overflow = "fold"  # the function's own name stands at the end
    for column in table.columns[2:5]:
        column.justify = "right"
    for version in found.versions:
        used = dt.datetime.fromtimestamp(version.last_used).astimezone()
        table.add_row(
            version.function,
            version.namespace[:8],
            str(version.entries),
            decimal(version.size),
            str(version.used_again),
            f"{used:%Y-%m-%d %H:%M}",
        )
    console = Console()
    console.print(table)
    console.print(f"{found.entries} entries, {decimal(found.size)}")
    console.print(
        f"now: {found.leases} leases, {found.orphans} temporary files,"
        f" {found.corrupt} damaged files moved aside, {found.trash} trees in the trash"
    )
    events = found.events
    console.print(
        f"so far: {events['corrupt']} corrupt entries, {events['conflict']} conflicts,"
        f" {events['lost-reply']} lost replies recovered, {events['takeover']} leases taken over"
    )
    if plot is not None:
        console.print(f"drawn to {plot}")
