"""Watching and explaining a pipeline from outside of it: ``mlops-ext clearml watch|explain``."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clearml_ext.errors import ServerError
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import take_snapshot
from clearml_ext.server.statuses import WAITING, Status
from clearml_ext.server.tasks import pipeline_tasks
from clearml_ext.settings import load_settings
from clearml_ext.watchdog.explain import Explanation, explain
from clearml_ext.watchdog.watchdog import PipelineMonitor
from mlops_ext.errors import TopologyError
from mlops_ext.retry import retry

_COLOURS: dict[str, str] = {
    Status.COMPLETED: "green",
    Status.IN_PROGRESS: "cyan",
    Status.QUEUED: "yellow",
    Status.FAILED: "bold red",
    Status.STOPPED: "red",
}
# Polls after one that failed: a server that restarts is away for some seconds.
_MORE_TRIES = 5


def explain_task(task: str) -> list[Explanation]:
    """Why the steps of controller *task*, or *task* itself, wait.

    Raises:
        ServerError: the server cannot be asked.
        TopologyError: there is no such task.
    """
    settings = load_settings()
    client = Client.from_configuration(settings.timeout_s)
    own, children = pipeline_tasks(client, task)
    if not own:
        raise TopologyError("the task", task, f"an id that {client.shown} knows")
    waiting = [child for child in children if child.get("status") in WAITING]
    if own.get("status") == Status.QUEUED:
        waiting.insert(0, own)
    if not waiting:
        return []
    snapshot = take_snapshot(client, settings)
    ancestors = [task, *filter(None, [str(own.get("parent") or "")])]
    return [explain(each, snapshot, ancestors) for each in waiting]


def watch_pipeline(task: str, *, as_json: bool = False, **given: object) -> bool:
    """Show *task*'s pipeline until it ends; returns whether it completed.

    As a table that is drawn anew, or *as_json*, an object a line for each change.

    Raises:
        ServerError: the server cannot be asked.
        TopologyError: there is no such task.
    """
    settings = load_settings(**given)
    client = Client.from_configuration(settings.timeout_s)
    console = Console()
    told: list[str] = []
    monitor = PipelineMonitor(client, task, settings, acts=settings.move, notify=told.append)
    pauses = [settings.interval_s] * _MORE_TRIES

    def may_pass(error: Exception) -> bool:
        return isinstance(error, ServerError) and error.is_transient and bool(monitor.own)

    last = ""
    with Live(console=console, auto_refresh=False) if not as_json else nullcontext() as live:
        while True:
            runs = retry(monitor.poll, pauses=pauses, is_transient=may_pass)
            if not monitor.own:
                raise TopologyError("the task", task, f"an id that {client.shown} knows")
            if live is None:
                line = json.dumps(_document(monitor, told), ensure_ascii=False)
                if line != last:
                    print(line, flush=True)  # noqa: T201  # what the command line was asked for
                last = json.dumps(_document(monitor, []), ensure_ascii=False)
            else:
                for text in told:
                    console.print(Text(text, "yellow"))
                live.update(_table(monitor), refresh=True)
            told.clear()
            if not runs:
                return monitor.own.get("status") == Status.COMPLETED
            time.sleep(settings.interval_s)


def _document(monitor: PipelineMonitor, told: Sequence[str]) -> dict[str, Any]:
    """The pipeline and its steps for JSON, with what there is to tell."""
    keys = {"step": "name", "status": "status", "agent": "last_worker"}
    steps = [{key: each.get(name) for key, name in keys.items()} for each in monitor.children]
    own = monitor.own
    return {"pipeline": own.get("name"), "status": own.get("status"), "steps": steps,
            "messages": list(told)}  # fmt: skip


def _table(monitor: PipelineMonitor) -> Table:
    own, steps = monitor.own, _document(monitor, ())["steps"]
    ended = sum(step["status"] in {Status.COMPLETED, Status.PUBLISHED} for step in steps)
    title = f"{own.get('name')}: {own.get('status')}, {ended} of {len(steps)} steps completed"
    table = Table("step", "status", "agent", title=title, title_justify="left")
    for step in steps:
        status = str(step["status"])
        shown = Text(status, _COLOURS.get(status, ""))
        table.add_row(Text(str(step["step"])), shown, Text(str(step["agent"] or "")))
    return table
