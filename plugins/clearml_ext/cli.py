"""The command group ``mlops-ext clearml``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mlops_ext.errors import MlopsExtError

if TYPE_CHECKING:
    from clearml_ext.results import Result

__all__ = ["clearml"]


@click.group()
def clearml() -> None:
    """ClearML pipelines that cannot deadlock on their own queues."""


@clearml.command()
@click.argument("targets", nargs=-1, required=True, metavar="FILE...")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON object a line.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the topology as .svg, .png or .html, the deadlock in red.",
)
@click.option(
    "--save",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the topology that was checked to a .yaml or .json file.",
)
def check(targets: tuple[str, ...], *, as_json: bool, plot: Path | None, save: Path | None) -> None:
    """Check whether pipelines can deadlock: topology files, scripts, or pipeline task ids.

    A FILE that ends in .yaml, .yml or .json describes workers and pipelines, and needs no server.
    Exit status: 0 safe, 1 unsafe, 2 not known.
    """
    from clearml_ext.results import exit_code

    if len(targets) > 1 and (plot or save):
        raise click.UsageError("--plot and --save take one FILE at a time")
    results = []
    for target in targets:
        result = _check_one(target)
        results.append(result)
        if as_json:
            click.echo(result.to_json())
        else:
            _show([result])
        if result.topology is not None:
            _keep(result, plot, save)
    sys.exit(exit_code(results))


def _check_one(target: str) -> Result:
    from clearml_ext.results import Answer, Result, examine
    from clearml_ext.topology_file import read_topology

    try:
        return examine(target, read_topology(Path(target)))
    except MlopsExtError as error:
        return Result(target=target, answer=Answer.UNKNOWN, reasons=(str(error),))


def _keep(result: Result, plot: Path | None, save: Path | None) -> None:
    from clearml_ext.plot import draw
    from clearml_ext.topology_file import write_topology

    if result.topology is None:
        return
    if save is not None:
        write_topology(result.topology, save)
    if plot is not None:
        draw(result.topology, result.verdict, plot)


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
        for number, fix in enumerate(result.fixes):
            lead = "  mend it: " if number == 0 else "  or:      "
            console.print(Text.assemble((lead, "bold"), fix.text))
