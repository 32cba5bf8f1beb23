"""``mlops-ext zenml``: register the flavors, look at the memory of runs."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mlops_ext.errors import MlopsExtError, UnknownNameError
from mlops_ext.redaction import redacted

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

    from zenml_ext.memory.report import StepMemory

_PATIENCE_S = 3.0
"""For a server that is there to say so."""
_RUNS = 20
"""Runs of a pipeline that are shown: enough to see a trend, few enough to read."""


@click.group()
def zenml() -> None:
    """ZenML: steps that survive out-of-memory kills."""


@zenml.command()
def register() -> None:
    """Make the flavors local_oom and kubernetes_oom known to the active ZenML server.

    Can be repeated: what is registered already stays as it is. The exit status is 1 if a flavor
    could not be registered.
    """
    client = _client()
    from zenml_ext import flavors

    good = {flavors.Known.NEW, flavors.Known.SAME, flavors.Known.UPDATED}
    usable = []
    tried = list(flavors.register(client))
    for found in tried:
        detail = f" ({found.detail})" if found.detail else ""
        click.echo(f"{found.name}: {found.outcome.value}{detail}")
        if found.outcome in good:
            usable.append(found.name)
    for name in usable:
        steps = flavors.next_steps(client, name)
        if steps:
            click.echo(f"\nTo run pipelines with {name}, type:")
        for step in steps:
            click.echo(f"  {step}")
    if len(usable) < len(tried):
        sys.exit(1)


@zenml.command()
@click.argument("run", required=False)
@click.option("--pipeline", help=f"Show the last {_RUNS} runs of this pipeline instead.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Also write a picture of memory over attempts to this file (png, svg, pdf).",
)
@click.option("--suggest", is_flag=True, help="Print settings to paste into a run configuration.")
def memory(run: str | None, pipeline: str | None, plot: Path | None, *, suggest: bool) -> None:
    """Show the attempts at each step, their limits and peaks, and what comes next time.

    RUN is a run's name or id; without one, the last run is shown.
    """
    if run and pipeline:
        raise click.UsageError("give a RUN or --pipeline NAME, not both")
    client = _client()
    runs = _runs(client, run, pipeline)
    steps = list(itertools.chain.from_iterable(_steps(client, r) for r in runs))
    if plot is not None:
        from zenml_ext.memory.plot import plot as draw

        try:
            draw(steps, plot)
        except (OSError, ValueError) as error:
            raise MlopsExtError(f"{plot} cannot be written: {error}") from error
        click.echo(f"wrote {plot}", err=True)
    if suggest:
        from zenml_ext.memory.report import settings_to_paste

        click.echo(settings_to_paste(steps))
    else:
        _show(steps)
        for line in _orchestrators(runs):
            click.echo(line)


def _client() -> Any:
    """ZenML's client; its import takes seconds, its chatter stays out of our output.

    Raises:
        MlopsExtError: the server does not answer within seconds, or refuses; in one line.
    """
    try:
        from zenml.client import Client
        from zenml.config.global_config import GlobalConfiguration
    except ImportError as error:
        from mlops_ext.errors import MissingExtraError

        raise MissingExtraError("zenml", "zenml") from error
    import requests

    logging.getLogger("zenml").setLevel(logging.WARNING)
    store, what = GlobalConfiguration().store_configuration, "does not answer"
    url = store.url
    try:
        if url.startswith("http"):  # ZenML's own client would try for most of a minute
            requests.get(
                f"{url}/health", timeout=_PATIENCE_S, verify=getattr(store, "verify_ssl", True)
            )
        what = "refuses"
        client = Client()
        _ = client.active_user
    except Exception as error:
        words = redacted(error).splitlines()[0][:200]
        raise MlopsExtError(
            f"ZenML's server {url} {what}: {words}; see zenml status, or log in with zenml login"
        ) from error
    return client


def _runs(client: Any, run: str | None, pipeline: str | None) -> list[PipelineRunResponse]:
    if pipeline:
        page = client.list_pipeline_runs(
            pipeline=pipeline, sort_by="desc:created", size=_RUNS, hydrate=True
        )
        if not page.total:
            raise UnknownNameError("pipeline with runs", pipeline, _pipelines(client))
        return list(reversed(page.items))
    if run:
        try:
            return [client.get_pipeline_run(run)]
        except (KeyError, ValueError) as error:
            names = [r.name for r in client.list_pipeline_runs(sort_by="desc:created", size=50)]
            raise UnknownNameError("run", run, names) from error
    page = client.list_pipeline_runs(sort_by="desc:created", size=1, hydrate=True)
    if not page.total:
        raise MlopsExtError("there is no run yet; run a pipeline, then ask again")
    return list(page.items)


def _pipelines(client: Any) -> list[str]:
    return [p.name for p in client.list_pipelines(size=50)]


def _steps(client: Any, run: PipelineRunResponse) -> Iterator[StepMemory]:
    from zenml_ext.memory.records import read
    from zenml_ext.memory.report import StepMemory

    rows = client.list_run_steps(pipeline_run_id=run.id, sort_by="created", size=1000, hydrate=True)
    for name, attempts in read(rows).items():
        yield StepMemory(
            run=run.name, step=name, attempts=attempts, following=_next_plan(run, name)
        )


def _orchestrators(runs: list[PipelineRunResponse]) -> list[str]:
    """What orchestrators' own pods lacked, one line for each run."""
    from zenml_ext.memory.records import ORCHESTRATOR

    found: list[Any] = [run.run_metadata.get(ORCHESTRATOR) for run in runs]
    return [str(one["advice"]) for one in found if isinstance(one, dict) and "advice" in one]


def _next_plan(run: PipelineRunResponse, name: str) -> Any:
    """What the policy would give the step next time; None where it cannot be asked."""
    from zenml_ext.memory import policy
    from zenml_ext.settings import OomSettings

    try:
        snapshot = run.snapshot
        if snapshot is None:
            return None
        step = snapshot.step_configurations[name]
        raw = _orchestrator_settings(run, step)
        known = {field: raw[field] for field in OomSettings.model_fields if field in raw}
        return policy.next_plan(OomSettings.model_validate(known), run, step)
    except Exception:  # an old run may lack any of this; the table goes on without the line
        logging.getLogger(__name__).debug("no plan for step %s", name, exc_info=True)
        return None


def _orchestrator_settings(run: PipelineRunResponse, step: Any) -> dict[str, Any]:
    """The settings of the run's orchestrator as the step has them: registered ones, then its own.

    Their key is ``orchestrator:NAME``, in older versions ``orchestrator.FLAVOR``.
    """
    from zenml.enums import StackComponentType

    raw: dict[str, Any] = {}
    if run.stack is not None:
        for component in run.stack.components.get(StackComponentType.ORCHESTRATOR, ()):
            raw |= component.configuration
    for key, values in step.config.settings.items():
        if key.replace(".", ":").partition(":")[0] == "orchestrator":
            raw |= dict(values)
    return raw


def _show(steps: list[StepMemory]) -> None:
    from rich.console import Console
    from rich.table import Table

    from zenml_ext.memory.report import waste

    if not steps:
        raise MlopsExtError(
            "no step of it has a recorded attempt; only runs on local_oom and kubernetes_oom have"
        )
    runs = {step.run for step in steps}
    title = f"Memory by attempt, run {runs.pop()}" if len(runs) == 1 else "Memory by attempt"
    table = Table(title=title, title_justify="left")
    columns = ("step", "#", "limit", "peak", "outcome", "seconds", "lost", "node")
    for column in (*(("run",) if runs else ()), *columns):
        right = column in {"#", "limit", "peak", "seconds", "lost"}
        table.add_column(column, justify="right" if right else "left")
    total, lost = 0.0, 0.0
    for step in steps:
        total += waste(step.attempts)
        for attempt in step.attempts:
            lost += attempt.lost_s
            table.add_row(
                *((step.run,) if runs else ()),
                step.step,
                str(attempt.number),
                attempt.memory.human if attempt.memory else "none",
                attempt.peak.human if attempt.peak else "-",
                f"[{'green' if attempt.completed else 'red'}]{attempt.outcome}[/]",
                f"{attempt.runtime_s:.1f}",
                f"{attempt.lost_s:.1f}",
                attempt.node,
            )
    console = Console()
    console.print(table)
    console.print(f"Given and not needed: {total:.4g} GB-hours. Work lost: {lost:.1f} s.")
    for step in {s.step: s for s in steps}.values():
        if step.following is not None:
            first = step.following.first_limit
            console.print(
                f"Next time {step.step} starts with"
                f" {first.human if first else 'no limit'}. {step.following.reason}",
                highlight=False,
            )
