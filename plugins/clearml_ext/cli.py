"""The command group ``mlops-ext clearml``."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlops_ext.errors import MlopsExtError

if TYPE_CHECKING:
    from clearml_ext.check.results import Result
    from clearml_ext.check.status import WorkspaceStatus

_FILE = click.Path(dir_okay=False, path_type=Path)
_FOLDER = click.Path(file_okay=False, path_type=Path)
_KINDS = ("compose", "systemd", "helm")


@click.group()
def clearml() -> None:
    """ClearML pipelines that cannot deadlock on their own queues."""


@clearml.command()
@click.argument("targets", nargs=-1, required=True, metavar="FILE|SCRIPT|TASK...")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line.")
@click.option("--plot", type=_FILE, help="Draw it as .svg or .html, the deadlock in red.")
@click.option("--save", type=_FILE, help="Write what was checked to a .yaml or .json file.")
@click.option("--queue", help="The controller's queue, for a TASK.")
@click.option("--agents", type=_FILE, help="A file with the agents, for a SCRIPT: asks no server.")
def check(
    targets: tuple[str, ...],
    *,
    as_json: bool,
    plot: Path | None,
    save: Path | None,
    queue: str | None,
    agents: Path | None,
) -> None:
    """Check whether pipelines can deadlock; nothing is enqueued.

    A FILE that ends in .yaml, .yml or .json describes workers and pipelines, and needs no server.
    A SCRIPT (.py) is run without its pipelines: what it writes does not reach the server, and no
    step runs. A TASK is the id of a pipeline's controller.

    Exit status: 0 safe, 1 unsafe, 2 not known.
    """
    from clearml_ext.check.results import exit_code
    from clearml_ext.check.targets import check_target
    from clearml_ext.settings import load_settings

    if len(targets) > 1 and (plot or save):
        raise click.UsageError("--plot and --save take one target at a time")
    settings = load_settings(agents=agents)
    results = []
    for target in targets:
        result = check_target(target, settings, queue)
        results.append(result)
        if as_json:
            click.echo(result.to_json())
        else:
            _show([result])
        _keep(result, plot, save)
    sys.exit(exit_code(results))


@clearml.command(context_settings={"ignore_unknown_options": True})
@click.option("--fix", is_flag=True, help="Reroute what is refused, if that helps.")
@click.option("--dry-run", is_flag=True, help="Only show what would happen.")
@click.option(
    "--wait",
    "wait_s",
    type=float,
    metavar="SECONDS",
    help="Wait until the launch is safe; first come, first served.",
)
@click.argument("script", type=click.Path(exists=True, dir_okay=False))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def launch(
    script: str, arguments: tuple[str, ...], *, fix: bool, dry_run: bool, wait_s: float | None
) -> None:
    """Run SCRIPT, whose pipelines are enqueued only if they cannot deadlock.

    With --fix, in this order: reroute the controller, reroute steps to a free queue, run the
    controller here; else refuse.
    Exit status: the script's; with --dry-run 0 safe, 1 unsafe, 2 not known.
    """
    from clearml_ext.check import targets
    from clearml_ext.check.results import exit_code

    with _told():
        if dry_run:
            result = targets.check_script(script, arguments)
            _show([result])
            sys.exit(exit_code([result]))
        sys.exit(targets.launch(script, arguments, {"fix": fix, "wait_s": wait_s}))


@clearml.command()
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object.")
def status(*, as_json: bool) -> None:
    """Show the whole workspace: queues without agents, held agents, runs that are stuck.

    Exit status: 0 all is well, 1 something is stuck or unserved, 2 the server cannot be asked.
    """
    import json

    from clearml_ext.check.status import workspace_status
    from clearml_ext.server.client import Client
    from clearml_ext.settings import load_settings

    settings = load_settings()
    with _told():
        found = workspace_status(Client.from_configuration(settings.timeout_s), settings)
    if as_json:
        click.echo(json.dumps(found.document(), ensure_ascii=False))
    else:
        _show_status(found)
    sys.exit(0 if found.healthy else 1)


@clearml.command()
@click.argument("task")
def explain(task: str) -> None:
    """Say why a pipeline hangs: TASK is its controller, or a step that waits.

    Exit status: 0 nothing is stuck, 1 a step is stuck, 2 not known.
    """
    from clearml_ext.watchdog.live import explain_task

    with _told():
        found = explain_task(task)
    for each in found:
        click.echo(each.text)
    if not found:
        click.echo("nothing waits")
    sys.exit(1 if any(each.stuck for each in found) else 0)


@clearml.command()
@click.argument("task")
@click.option("--move", is_flag=True, help="Move a step that is stuck to where an agent is free.")
@click.option("--pending", type=float, metavar="SECONDS", help="How long a step may wait.")
@click.option("--interval", type=float, metavar="SECONDS", help="Between two polls.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object for each change.")
def watch(
    task: str, *, move: bool, pending: float | None, interval: float | None, as_json: bool
) -> None:
    """Show the progress of the pipeline whose controller is TASK, and explain what waits.

    Ends with the pipeline. Without --move nothing is changed.
    Exit status: 0 completed, 1 not completed, 2 the server cannot be asked.
    """
    from clearml_ext.watchdog.live import watch_pipeline

    with _told():
        done = watch_pipeline(
            task, as_json=as_json, move=move or None, pending_s=pending, interval_s=interval
        )
    sys.exit(0 if done else 1)


@clearml.command()
@click.argument("target", metavar="FILE|SCRIPT|TASK")
@click.option(
    "--format", "kind", type=click.Choice(_KINDS), default="compose", help="What to write."
)
@click.option("--output", type=_FOLDER, help="A folder for the files of all formats.")
@click.option("--all", "anew", is_flag=True, help="All agents, also those that are there already.")
def manifest(target: str, *, kind: str, output: Path | None, anew: bool) -> None:
    """Write files that start the agents which a plan lacks to be safe.

    The plan with these agents was checked. Credentials are not in the files; they say where they
    are read from.

    Exit status: 0 written, 1 no agents make it safe, 2 not known.
    """
    from clearml_ext.check.manifest import manifest as agents_for
    from clearml_ext.check.targets import check_target
    from clearml_ext.settings import load_settings
    from clearml_ext.topology.file import write

    settings = load_settings()
    result = check_target(target, settings)
    if result.topology is None:
        _show([result])
        sys.exit(2)
    with _told(status=1):
        found = agents_for(result.topology, settings.services_queue, anew=anew)
    for change in found.changes:
        click.echo(f"# {change}")
    if not found.agents:
        click.echo(f"# {target} needs no other agents: --all writes those that it has")
    for each in [kind] if output is None else _KINDS:
        for name, text in getattr(found, each)().items() if found.agents else ():
            if output is None:
                click.echo(f"# {name}\n{text}", nl=False)
                continue
            output.mkdir(parents=True, exist_ok=True)
            with _told():
                write(output / name, text)
            click.echo(str(output / name))


@contextmanager
def _told(status: int = 2) -> Iterator[None]:
    """Turn an error within the block into one line and the exit status *status*."""
    try:
        yield
    except MlopsExtError as error:
        click.echo(f"mlops-ext: {error}", err=True)
        sys.exit(status)


def _keep(result: Result, plot: Path | None, save: Path | None) -> None:
    from clearml_ext.topology.file import write_topology
    from clearml_ext.topology.svg import draw

    if result.topology is None or result.verdict is None:
        return
    if save is not None:
        write_topology(result.topology, save)
    if plot is not None:
        draw(result.topology, result.verdict, plot)


def _show_status(found: WorkspaceStatus) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(soft_wrap=True)
    table = Table("queue", "waiting", "agents", "dead agents", "one more launch")
    for queue in found.queues:
        style = "bold red" if queue.unserved else ""
        agents = str(len(queue.agents)) if queue.agents else "none"
        cells = (queue.name, str(queue.waiting), agents, ", ".join(queue.dead), queue.launch)
        table.add_row(*(Text(cell, style) for cell in cells))
    console.print(table)
    for held in found.held:
        since = f" since {held.since}" if held.since else ""
        console.print(Text(f"{held.worker} is held by {held.type} {held.task}{since}"))
    for reason in found.stuck:
        console.print(Text(f"stuck: {reason}", "bold red"))
    for note in found.notes:
        console.print(Text(f"note: {note}", "dim"))


def _show(results: Iterable[Result]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(soft_wrap=True)
    styles = {"safe": "green", "unsafe": "bold red", "unknown": "yellow"}
    for result in results:
        answer = result.answer.value
        console.print(Text.assemble(f"{result.target}: ", (answer, styles[answer])))
        for reason in result.reasons:
            console.print(Text(f"  {reason}"))
        for note in result.notes:
            console.print(Text(f"  note: {note}", "dim"))
        for number, text in enumerate(result.remedies):
            lead = "  fix: " if number == 0 else "  or:  "
            console.print(Text.assemble((lead, "bold"), text))
