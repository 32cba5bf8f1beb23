"""What the server knows at one moment: queues, workers with their slots, controllers.

Three requests, however many queues and workers there are; one more for each level of
sub-pipelines that is not known from them.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clearml_ext.errors import ServerError
from clearml_ext.server.client import Client
from clearml_ext.settings import ClearmlSettings
from clearml_ext.topology.file import read_topology
from mlops_ext.errors import TopologyError, UnknownNameError
from mlops_ext.queues.check import Worker

HIDDEN_QUEUE = "k8s_scheduler"
"""Where the Kubernetes glue keeps tasks whose pods are pending."""

_FIELDS = [
    "id", "name", "type", "status", "status_message", "parent", "tags", "system_tags",
    "last_worker", "started", "execution.queue", "hyperparams", "runtime", "script.entry_point",
    "configuration.Pipeline", "configuration.schedule", "configuration.datasets",
    "configuration.models", "configuration.tasks",
]  # fmt: skip
_CHILD = re.compile(r"^(.+?):(?:service:)?[0-9a-f]{32}$")
"""Workers that run one task for another worker: in services mode, and under the Kubernetes glue."""
_NOTHING = -1
_TAG = re.compile(r"^capacity[:=](.*)$", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWorker:
    """A worker as the server lists it.

    Attributes:
        name: its id.
        queues: names of the queues it listens to.
        slots: how many tasks it runs at a time, None for any number.
        task: id of the task it runs, or None.
        age_s: seconds since its last report.
        fresh: whether that is recent enough to count on it.
    """

    name: str
    queues: tuple[str, ...]
    slots: int | None
    task: str | None
    age_s: float
    fresh: bool

    @property
    def usable(self) -> bool:
        """Whether it takes tasks, as far as one can know."""
        return self.fresh and bool(self.queues)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What the server knows at one moment.

    Attributes:
        queues: id → name.
        entries: queue name → ids of the tasks that wait in it, first first.
        workers: all that are listed, dead ones too.
        tasks: id → document of the tasks that were asked for, run or wait.
        running: id of each task that runs → the worker that runs it.
        notes: what could not be read, and what was assumed instead.
    """

    queues: Mapping[str, str]
    entries: Mapping[str, tuple[str, ...]]
    workers: tuple[LiveWorker, ...]
    tasks: Mapping[str, Mapping[str, Any]]
    running: Mapping[str, str]
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
        return tuple(
            Worker(name=each.name, queues=each.queues, slots=each.slots)
            for each in self.workers
            if each.usable
        )

    def usable_names(self) -> set[str]:
        """The names of the fresh workers."""
        return {each.name for each in self.workers if each.usable}


def take_snapshot(
    client: Client, settings: ClearmlSettings, task_ids: Iterable[str] = ()
) -> Snapshot:
    """What the server knows now, with the documents of *task_ids*.

    Raises:
        ServerError: the server does not answer, or not as a ClearML server does.
        TopologyError: the file with declared capacities cannot be read.
    """
    notes: list[str] = []
    queue_rows = client.rows("queues.get_all_ex", {"search_hidden": True}, "queues")
    worker_rows = client.call("workers.get_all", {})
    try:
        queues = {str(row["id"]): str(row["name"]) for row in queue_rows}
        entries = {
            str(row["name"]): tuple(_entry_id(entry) for entry in row.get("entries") or [])
            for row in queue_rows
        }
        workers = _workers(worker_rows["workers"], client.server_time, settings, notes)
        workers = _with_queue_capacity(workers, queue_rows, notes)
        running = {
            str(row["task"]["id"]): _parent(str(row["id"]))
            for row in worker_rows["workers"]
            if row.get("task")
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ServerError(
            client.shown, "answered in a form that is not known", "is it a ClearML server?"
        ) from error
    waiting = (number for each in entries.values() for number in each)
    wanted = dict.fromkeys([*task_ids, *running, *waiting])
    return Snapshot(
        queues=queues,
        entries=entries,
        workers=_with_declared_capacity(workers, settings),
        tasks=fetch_tasks(client, wanted) if wanted else {},
        running=running,
        notes=tuple(notes),
    )


def fetch_tasks(client: Client, task_ids: Iterable[str]) -> dict[str, Mapping[str, Any]]:
    """The documents of *task_ids*, as far as they concern what waits for what, by id."""
    wanted = {"id": list(task_ids), "only_fields": _FIELDS, "search_hidden": True}
    rows = client.rows("tasks.get_all", wanted, "tasks")
    return {str(row["id"]): row for row in rows}


def _parent(worker: str) -> str:
    """The worker whose slot *worker* takes: its own, or that of the one it runs a task for."""
    found = _CHILD.match(worker)
    return found.group(1) if found else worker


def _entry_id(entry: Mapping[str, Any]) -> str:
    task = entry["task"]
    return str(task["id"] if isinstance(task, dict) else task)


def _workers(
    rows: Iterable[Mapping[str, Any]],
    server_time: dt.datetime | None,
    settings: ClearmlSettings,
    notes: list[str],
) -> list[LiveWorker]:
    rows = list(rows)
    moment = server_time or dt.datetime.now(dt.timezone.utc)
    names = [str(row["id"]) for row in rows]
    serving = {_parent(name) for name in names if _parent(name) != name}
    workers = []
    for row in rows:
        name = str(row["id"])
        if _parent(name) != name:
            continue
        age_s = _age(row.get("last_activity_time") or row.get("last_report_time"), moment)
        workers.append(
            LiveWorker(
                name=name,
                queues=tuple(
                    str(queue["name"])
                    for queue in row.get("queues") or []
                    if HIDDEN_QUEUE not in str(queue["name"])
                ),
                slots=_slots(name, row.get("tags") or [], notes, has_children=name in serving),
                task=str(row["task"]["id"]) if row.get("task") else None,
                age_s=age_s,
                fresh=age_s <= settings.fresh_s,
            )
        )
    return workers


def parse_time(text: object) -> dt.datetime | None:
    """The moment that the server wrote as *text*, or None if it is none."""
    try:
        found = dt.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=dt.timezone.utc)


def _age(text: object, moment: dt.datetime) -> float:
    seen = parse_time(text)
    return float("inf") if seen is None else max(0.0, (moment - seen).total_seconds())


def _slots(name: str, tags: Iterable[str], notes: list[str], *, has_children: bool) -> int | None:
    """Slots of a worker: what its tags declare, else one, or any number in services mode."""
    words = [word for tag in tags for word in re.split(r"[\s,]+", str(tag)) if word]
    for word in words:
        found = _TAG.match(word)
        if found:
            try:
                return _capacity(found.group(1), f"tag {word!r} of worker {name}")
            except TopologyError as error:
                notes.append(f"{error}; it counts as one slot")
                return 1
    boundless = {"services-mode", "services_mode", "k8s", "k8s-glue", "kubernetes"}
    if has_children or boundless & {word.casefold() for word in words}:
        return None
    return 1


def _capacity(text: object, where: str) -> int | None:
    if str(text).strip().casefold() == "unbounded":
        return None
    try:
        number = int(str(text))
    except ValueError:
        number = -1
    if number < 0:
        raise TopologyError(where, text, "capacity:<whole number> or capacity:unbounded")
    return number


def _with_queue_capacity(
    workers: list[LiveWorker], rows: Iterable[Mapping[str, Any]], notes: list[str]
) -> list[LiveWorker]:
    """The same workers, where a queue's metadata says how much its only worker takes."""
    for row in rows:
        most = _declared(row, "autoscaled", notes)
        if most is not _NOTHING:
            # Its machines come when tasks wait; as many as this may be there.
            name = f"autoscaler of {row['name']}"
            scaled = LiveWorker(
                name=name, queues=(str(row["name"]),), slots=most, task=None, age_s=0.0, fresh=True
            )
            workers = [each for each in workers if each.queues != scaled.queues]
            workers.append(scaled)
        slots = _declared(row, "capacity", notes)
        if slots is _NOTHING:
            continue
        serving = [each for each in workers if row["name"] in each.queues and each.fresh]
        if len(serving) == 1:
            workers = [_with_slots(each, slots) if each in serving else each for each in workers]
    return workers


def _declared(row: Mapping[str, Any], key: str, notes: list[str]) -> int | None:
    """The number of slots that the metadata of a queue declares, or `_NOTHING`."""
    metadata = row.get("metadata") or {}
    entry = metadata.get(key) if isinstance(metadata, dict) else None
    if entry is None and isinstance(metadata, list):
        entry = next((each for each in metadata if each.get("key") == key), None)
    if entry is None:
        return _NOTHING
    value = entry.get("value") if isinstance(entry, dict) else entry
    try:
        return _capacity(value, f"metadata {key} of queue {row['name']}")
    except TopologyError as error:
        notes.append(f"{error}; it is ignored")
        return _NOTHING


def _with_declared_capacity(
    workers: list[LiveWorker], settings: ClearmlSettings
) -> tuple[LiveWorker, ...]:
    if settings.capacity is None:
        return tuple(workers)
    declared = {each.name: each for each in read_topology(settings.capacity).workers}
    return tuple(
        _with_slots(each, declared[each.name].slots) if each.name in declared else each
        for each in workers
    )


def _with_slots(worker: LiveWorker, slots: int | None) -> LiveWorker:
    return LiveWorker(
        name=worker.name,
        queues=worker.queues,
        slots=slots,
        task=worker.task,
        age_s=worker.age_s,
        fresh=worker.fresh,
    )
