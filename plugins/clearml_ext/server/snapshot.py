"""What the server knows at one moment: queues, workers with their slots, controllers.

Three requests, however many queues and workers there are; one more for each level of
sub-pipelines that is not known from them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from clearml_ext.errors import ServerError
from clearml_ext.server.client import Client
from clearml_ext.server.workers import (
    HIDDEN_QUEUE,
    LiveWorker,
    labels_said,
    live_workers,
    parent_of,
)
from clearml_ext.settings import ClearmlSettings
from clearml_ext.topology.file import read_topology
from mlops_ext.errors import UnknownNameError
from mlops_ext.queues.check import Pipeline, Worker

_FIELDS = [
    "id", "name", "type", "status", "status_message", "parent", "tags", "system_tags",
    "last_worker", "started", "execution.queue", "hyperparams", "runtime", "script.entry_point",
    "configuration.Pipeline", "configuration.schedule", "configuration.datasets",
    "configuration.models", "configuration.tasks", "configuration.General",
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the server knows at one moment.

    Attributes:
        queues: id → name.
        entries: queue name → ids of the tasks that wait in it, first first.
        workers: all that are listed, dead ones too.
        tasks: id → document of the tasks that were asked for, run or wait.
        running: id of each task that runs → the worker that runs it.
        labels: queue name → what the queue is made for, if declared.
        others: pipelines that run too, beyond the tasks.
        notes: what could not be read, and what was assumed instead.
    """

    queues: Mapping[str, str]
    entries: Mapping[str, tuple[str, ...]]
    workers: tuple[LiveWorker, ...]
    tasks: Mapping[str, Mapping[str, Any]]
    running: Mapping[str, str]
    labels: Mapping[str, frozenset[str]] = field(default_factory=dict)
    others: tuple[Pipeline, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the queues that are not hidden."""
        return sorted(name for name in self.queues.values() if HIDDEN_QUEUE not in name)

    def queue_name(self, given: str) -> str:
        """The name of the queue given by name or id."""
        return self.queues.get(given, given)

    def require_queue(self, given: str) -> str:
        """The name of the queue given by name or id.

        Raises:
            UnknownNameError: there is none; the message suggests the nearest.
        """
        name = self.queue_name(given)
        if name not in self.queues.values():
            raise UnknownNameError("queue", name, self.names)
        return name

    def tasks_on(self, worker: str) -> tuple[str, ...]:
        """Ids of the tasks that run on *worker*."""
        return tuple(task for task, where in self.running.items() if where == worker)

    def has_room(self, worker: LiveWorker) -> bool:
        """Whether *worker* is alive and takes a task now."""
        busy = len(self.tasks_on(worker.name))
        return worker.usable and (worker.slots is None or busy < worker.slots)

    def usable_workers(self) -> tuple[Worker, ...]:
        """The fresh workers, as the checker wants them."""
        return tuple(each.plain for each in self.workers if each.usable)


def take_snapshot(
    client: Client, settings: ClearmlSettings, task_ids: Iterable[str] = ()
) -> Snapshot:
    """Ask the server what it knows now, with the documents of *task_ids*.

    Raises:
        ServerError: the server does not answer, or not as a ClearML server does.
        TopologyError: the file with declared capacities cannot be read.
    """
    if settings.agents is not None:
        known = list(task_ids)
        tasks = fetch_tasks(client, known) if known else {}
        return replace(written_down(settings.agents), tasks=tasks)
    notes: list[str] = []
    queue_rows = client.rows("queues.get_all_ex", {"search_hidden": True}, "queues")
    worker_rows = client.call("workers.get_all", {}).get("workers") or ()
    moment = client.server_time or dt.datetime.now(dt.timezone.utc)
    try:
        entries = {
            str(row["name"]): tuple(_entry_id(entry) for entry in row.get("entries") or [])
            for row in queue_rows
        }
        running = {
            str(row["task"]["id"]): parent_of(str(row["id"]))
            for row in worker_rows
            if row.get("task")
        }
        waiting = (number for each in entries.values() for number in each)
        wanted = dict.fromkeys([*task_ids, *running, *waiting])
        tasks = fetch_tasks(client, wanted) if wanted else {}
        workers = live_workers(worker_rows, queue_rows, tasks, moment, notes, settings.fresh_s)
        labels = {str(row["name"]): frozenset(labels_said(row)) for row in queue_rows}
        queues = {str(row["id"]): str(row["name"]) for row in queue_rows}
    except (KeyError, TypeError, AttributeError) as error:
        raise ServerError(
            client.shown, "answered in a form that is not known", "is it a ClearML server?"
        ) from error
    declared = {} if settings.capacity is None else _slots_of(settings.capacity)
    return Snapshot(
        queues=queues,
        entries=entries,
        workers=tuple(replace(each, slots=declared.get(each.name, each.slots)) for each in workers),
        tasks=tasks,
        running=running,
        labels={queue: each for queue, each in labels.items() if each},
        notes=tuple(notes),
    )


def _slots_of(path: Path) -> dict[str, int | None]:
    """The slots of each worker in the topology file *path*."""
    return {each.name: each.slots for each in read_topology(path).workers}


def written_down(path: Path) -> Snapshot:
    """Read agents and queues from the topology file *path* instead of a server."""
    found = read_topology(path, whole=False)
    workers = [LiveWorker(name=e.name, queues=e.queues, slots=e.slots) for e in found.workers]
    names = dict.fromkeys([*found.queues, *(queue for each in workers for queue in each.queues)])
    return Snapshot(
        queues={name: name for name in names},
        entries={},
        workers=tuple(workers),
        tasks={},
        running={},
        labels=found.labels,
        others=found.pipelines,
    )


def fetch_tasks(client: Client, task_ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """Fetch the documents of *task_ids* by id, with the fields that checks need."""
    return {str(row["id"]): row for row in client.tasks(_FIELDS, id=list(task_ids))}


def _entry_id(entry: Mapping[str, Any]) -> str:
    task = entry["task"]
    return str(task["id"] if isinstance(task, dict) else task)
