"""``mlops-ext joblib``: what is in a shared cache, whether it is whole, and cleaning it up."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from joblib_ext.maintenance.stats import Stats

__all__ = ["joblib"]

_LOCATION = click.argument("location")


@click.group()
def joblib() -> None:
    """Look after a cache that joblib's "shared" backend keeps, in a folder or at a URL.

    Credentials, keys and everything else come from the settings that programs read too.
    """


@joblib.command()
@_LOCATION
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def stats(location: str, *, as_json: bool) -> None:
    """Entries, size and use by function and version; what went wrong and was repaired."""
    from joblib_ext.maintenance.find import find_store
    from joblib_ext.maintenance.stats import statistics

    found = statistics(find_store(location))
    if as_json:
        import dataclasses
        import json

        document = {"entries": found.entries, "bytes": found.size, **dataclasses.asdict(found)}
        click.echo(json.dumps(document, indent=2))
    else:
        _print_table(found)


@joblib.command()
@_LOCATION
@click.option("--no-repair", is_flag=True, help="Only say what does not verify.")
@click.option("--sign-key", help="Key of a signed cache, if the settings do not have it.")
def verify(location: str, *, no_repair: bool, sign_key: str | None) -> None:
    """Check every byte of every entry; move aside what is damaged. Exit 1 if something was."""
    from joblib_ext.maintenance.find import find_store
    from joblib_ext.maintenance.stats import verify_entries

    store = find_store(location, {"sign_key": sign_key} if sign_key else {})
    found = verify_entries(store, repair=not no_repair, track=_track("Verifying"))
    click.echo(
        f"{found.good} entries verify, {len(found.corrupt)} do not, {found.repaired} moved aside"
    )
    if found.unchecked:
        click.echo(
            f"{found.unchecked} cannot be checked here, and stay: they are signed with another key,"
            " or need xxhash or another release"
        )
    for corrupt in found.corrupt:
        click.echo(f"  {corrupt}")
    if found.corrupt:
        raise SystemExit(1)


@joblib.command()
@_LOCATION
@click.option("--min-age", default=60.0, show_default=True, help="Leave what is younger, in s.")
def gc(location: str, min_age: float) -> None:
    """Remove what killed processes left, leases of dead owners, and what was moved aside."""
    from joblib_ext.maintenance.find import find_store
    from joblib_ext.maintenance.garbage import collect_garbage

    track = _track("Collecting")
    done = collect_garbage(find_store(location), min_age_s=min_age, track=track)
    click.echo(
        f"removed {done.orphans} orphans, {done.leases} dead leases, {done.corrupt} damaged files,"
        f" {done.trash} cleared files and folders, {done.folders} empty versions"
    )


@joblib.command()
@_LOCATION
@click.option("--yes", is_flag=True, help="Do not ask.")
def clear(location: str, *, yes: bool) -> None:
    """Remove all entries. Running programs go on, and compute anew."""
    from joblib_ext.maintenance.find import find_store
    from joblib_ext.maintenance.garbage import collect_garbage
    from joblib_ext.maintenance.stats import statistics

    store = find_store(location)
    if not yes:
        click.confirm(f"Remove everything in {store.layout.root}?", abort=True)
    entries = statistics(store).entries
    store.clear(store.layout.items)
    collect_garbage(store)
    click.echo(f"removed {entries} entries")


@joblib.command("import")
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("location", required=False)
def import_(source: Path, location: str | None) -> None:
    """Take over the results that joblib's own backend left in SOURCE; by default, in place.

    The results are unpickled: do this only with a cache whose writers you trust.
    """
    from joblib_ext.maintenance.find import store_for
    from joblib_ext.maintenance.taking import take_cache

    taken = take_cache(source, store_for(location or source), _track("Taking over"))
    click.echo(
        f"took over {taken.entries} results; {taken.present} were there already, {taken.left} could"
        " not be read"
    )


def _track(text: str) -> Any:
    """A progress bar on the error output, if that is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    quiet = not console.is_terminal
    return partial(track, description=text, console=console, transient=True, disable=quiet)


def _print_table(found: Stats) -> None:
    import datetime as dt
    from collections import Counter

    from rich.console import Console
    from rich.filesize import decimal
    from rich.table import Table

    table = Table("function", "version", "entries", "size", "used again", "last used")
    table.columns[0].overflow = "fold"  # the function's own name stands at the end
    for column in table.columns[2:5]:
        column.justify = "right"
    for one in found.versions:
        used = dt.datetime.fromtimestamp(one.last_used).astimezone()
        numbers = str(one.entries), decimal(one.size), str(one.used_again)
        table.add_row(one.function, one.namespace[:8], *numbers, f"{used:%Y-%m-%d %H:%M}")
    console = Console()
    console.print(table)
    console.print(f"{found.entries} entries, {decimal(found.size)}")
    console.print(
        f"now: {found.leases} leases, {found.orphans} temporary files,"
        f" {found.corrupt} damaged files moved aside, {found.trash} trees in the trash"
    )
    events = Counter(found.events)
    console.print(
        f"so far: {events['corrupt']} corrupt entries, {events['conflict']} conflicts,"
        f" {events['lost-reply']} lost replies recovered, {events['takeover']} leases taken over"
    )
