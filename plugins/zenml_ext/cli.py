"""``mlops-ext zenml``: register the flavors, look at the memory of runs."""

from __future__ import annotations

import json
import logging
import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from mlops_ext.errors import MlopsExtError, UnknownNameError
from mlops_ext.redaction import redacted

if TYPE_CHECKING:
    from zenml.models import PipelineRunResponse

    from zenml_ext.memory.report import StepMemory
    from zenml_ext.settings import OomSettings

# For a server that is there to say so.
_PATIENCE_S = 3.0
_COLUMNS = ("run", "step", "#", "limit", "peak", "", "outcome", "seconds", "lost", "node")
_FIGURES = frozenset({"#", "limit", "peak", "seconds", "lost"})
# Columns of the bar that shows an attempt's peak beside the largest.
_BAR = 20
# Runs of a pipeline that are shown: enough to see a trend, few enough to read.
_RUNS = 20


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

    usable = []
    tried = list(flavors.register(client))
    for found in tried:
        detail = f" ({found.detail})" if found.detail else ""
        name = found.name if found.kind == "orchestrator" else f"{found.name} (step operator)"
        click.echo(f"{name}: {found.outcome.value}{detail}")
        if found.outcome not in {flavors.Known.MISSING, flavors.Known.FOREIGN}:
            usable.append(found)
    for name in [one.name for one in usable if one.kind == "orchestrator"]:
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
    help="Also write the table with its bars of memory to this file, as svg.",
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
    steps = list(_steps(client, runs))
    if suggest:
        from zenml_ext.memory.report import settings_to_paste

        click.echo(settings_to_paste(steps))
    else:
        _show(steps, plot)
        for line in _orchestrators(runs):
            click.echo(line)


@zenml.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def check(*, as_json: bool) -> None:
    """Say whether the active stack is ready for kubernetes_oom; nothing is changed.

    Asks the cluster for rights, quotas, LimitRanges and its version, and whether registry and
    package are there. The exit status is 1 if something is wrong.
    """
    stack = _client().active_stack_model
    from zenml.stack import Stack

    from mlops_ext.hookspecs import Severity
    from zenml_ext.check import check as ask

    findings = list(ask(Stack.from_model(stack)))
    if as_json:
        rows = [{**asdict(one), "severity": one.severity.value} for one in findings]
        click.echo(json.dumps(rows, indent=2))
    for one in () if as_json else findings:
        needs = one.severity is not Severity.OK and one.advice
        advice = f" → {one.advice}" if needs else ""
        click.echo(f"{one.severity.value:8}{one.check}: {one.message}{advice}")
    sys.exit(any(one.severity is Severity.PROBLEM for one in findings))


def _client() -> Any:
    """ZenML's client; its import takes seconds, its chatter stays out of our output.

    Raises:
        MlopsExtError: the server does not answer within seconds, or refuses; in one line.
    """
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration

    logging.getLogger("zenml").setLevel(logging.WARNING)
    import requests

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
            known = [one.name for one in client.list_pipelines(size=50)]
            raise UnknownNameError("pipeline with runs", pipeline, known)
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


def _steps(client: Any, runs: list[PipelineRunResponse]) -> Iterator[StepMemory]:
    """The steps of *runs*; the plan for the next run is made for the last of each name only."""
    from zenml_ext.memory.records import read
    from zenml_ext.memory.report import StepMemory

    found = []
    for run in runs:
        rows = client.list_run_steps(
            pipeline_run_id=run.id, sort_by="created", size=1000, hydrate=True
        )
        found += [(run, name, attempts) for name, attempts in read(rows).items()]
    last = {name: run for run, name, _ in found}
    for run, name, attempts in found:
        plan = _next_plan(run, name, attempts[-1].node) if last[name] is run else None
        yield StepMemory(run=run.name, step=name, attempts=attempts, following=plan)


def _orchestrators(runs: list[PipelineRunResponse]) -> list[str]:
    """What orchestrators' own pods lacked, one line for each run."""
    from zenml_ext.memory.records import ORCHESTRATOR

    found: list[Any] = [run.run_metadata.get(ORCHESTRATOR) for run in runs]
    return [str(one["advice"]) for one in found if isinstance(one, dict) and "advice" in one]


def _next_plan(run: PipelineRunResponse, name: str, node: str) -> Any:
    """What the policy would give the step next time; None where it cannot be asked.

    Runs of local_oom on this machine are in its history, which that flavor plans from; all others
    are planned from what ZenML's server knows.
    """
    from zenml.stack import Stack

    from mlops_ext.memory import Caps
    from zenml_ext.entrypoint import operator_of
    from zenml_ext.memory import policy
    from zenml_ext.memory.history import plan_from_server

    try:
        snapshot: Any = run.snapshot
        model: Any = run.stack
        step, stack = snapshot.step_configurations[name], Stack.from_model(model)
        has_operator = bool(step.config.step_operator)
        component = operator_of(stack, step) if has_operator else stack.orchestrator
        facts = policy.StepFacts(
            name=name,
            pipeline=snapshot.pipeline_configuration.name,
            step=step,
            settings=cast("OomSettings", component.get_settings(step)),
        )
        features = policy.features_of(run.id, step)
        if component.flavor == "local_oom" and node == socket.gethostname():
            return facts.plan(facts.policy, features, Caps(max_memory=facts.max_memory))
        return plan_from_server(facts, features)
    except Exception:  # an old run may lack any of this; the table goes on without the line
        logging.getLogger(__name__).debug("no plan for step %s", name, exc_info=True)
        return None


def _show(steps: list[StepMemory], picture: Path | None) -> None:
    from rich.bar import Bar
    from rich.console import Console
    from rich.table import Table

    from zenml_ext.memory.report import waste

    if not steps:
        raise MlopsExtError(
            "no step of it has a recorded attempt; only runs on local_oom and kubernetes_oom have"
        )
    table = Table(title="Memory by attempt", title_justify="left")
    for column in _COLUMNS:
        table.add_column(column, justify="right" if column in _FIGURES else "left")
    attempts = [attempt for step in steps for attempt in step.attempts]
    most = max(max(one.memory or 0, one.peak or 0) for one in attempts)
    for step in steps:
        for attempt in step.attempts:
            color = "green" if attempt.completed else "red"
            table.add_row(
                step.run,
                step.step,
                str(attempt.number),
                attempt.memory.human if attempt.memory else "none",
                attempt.peak.human if attempt.peak else "-",
                Bar(most, 0, attempt.peak or 0, width=_BAR, color=color),
                f"[{color}]{attempt.outcome}[/]",
                f"{attempt.runtime_s:.1f}",
                f"{attempt.lost_s:.1f}",
                attempt.node,
            )
    console = Console(record=picture is not None)
    console.print(table)
    total, lost = waste(attempts), sum(attempt.lost_s for attempt in attempts)
    console.print(f"Given and not needed: {total:.4g} GB-hours. Work lost: {lost:.1f} s.")
    for step in {s.step: s for s in steps}.values():
        if step.following is not None:
            first = step.following.first_limit
            console.print(
                f"Next time {step.step} starts with"
                f" {first.human if first else 'no limit'}. {step.following.reason}",
                highlight=False,
            )
    if picture is not None:
        try:
            console.save_svg(str(picture), title="mlops-ext zenml memory")
        except OSError as error:
            raise MlopsExtError(f"{picture} cannot be written: {error}") from error
