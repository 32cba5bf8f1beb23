"""Watching and explaining a pipeline from outside of it: ``mlops-ext clearml watch|explain``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from clearml_ext.errors import ServerError
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import take_snapshot
from clearml_ext.server.tasks import pipeline_tasks
from clearml_ext.settings import load_settings
from clearml_ext.watchdog.explain import Explanation, explain
from clearml_ext.watchdog.watchdog import PipelineMonitor
from mlops_ext.errors import TopologyError

_COLOURS = {
    "completed": "green",
    "in_progress": "cyan",
    "queued": "yellow",
    "failed": "bold red",
    "stopped": "red",
}
_MAX_FAILURES = 5
"""Polls in a row that may fail: a server that restarts is away for some seconds."""


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
    waiting = [child for child in children if child.get("status") in {"queued", "created"}]
    if own.get("status") == "queued":
        waiting.insert(0, own)
    if not waiting:
        return []
    snapshot = take_snapshot(client, settings)
    ancestors = [task, *filter(None, [str(own.get("parent") or "")])]
    return [explain(each, snapshot, ancestors) for each in waiting]


def watch_pipeline(task: str, **given: object) -> bool:
    """Show *task*'s pipeline until it ends; returns whether it completed.

    Raises:
        ServerError: the server cannot be asked.
        TopologyError: there is no such task.
    """
    settings = load_settings(**given)
    client = Client.from_configuration(settings.timeout_s)
    console = Console()

    def show(text: str) -> None:
        console.print(Text(text, "yellow"))

    monitor = PipelineMonitor(client, task, settings, acts=settings.move, notify=show)
    failures = 0
    with Live(console=console, auto_refresh=False) as live:
        while True:
            try:
                runs = monitor.poll()
                failures = 0
            except ServerError as error:
                failures += 1
                if failures >= _MAX_FAILURES or not monitor.own or not error.is_transient:
                    raise
                runs = True
            if not failures and not monitor.own:
                raise TopologyError("the task", task, f"an id that {client.shown} knows")
            live.update(_table(monitor.own, monitor.children), refresh=True)
            if not runs:
                return monitor.own.get("status") == "completed"
            time.sleep(settings.interval_s)


def _table(own: Mapping[str, Any], children: list[Mapping[str, Any]]) -> Table:
    ended = sum(child.get("status") in {"completed", "published"} for child in children)
    title = f"{own.get('name')}: {own.get('status')}, {ended} of {len(children)} steps completed"
    table = Table(title=title, title_justify="left")
    for column in ("step", "status", "agent"):
        table.add_column(column)
    for child in children:
        status = str(child.get("status"))
        shown = Text(status, _COLOURS.get(status, ""))
        table.add_row(str(child.get("name")), shown, str(child.get("last_worker") or ""))
    return table
