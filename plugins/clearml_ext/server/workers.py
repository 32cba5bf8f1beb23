"""The live workers, and how many tasks each takes at a time: what the server does not tell.

A plain agent takes one. What is more is declared in tags and metadata, or shows by the marks that
services agents, the Kubernetes glue and the SDK's autoscaler leave on the server.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clearml_ext.server.statuses import Status
from clearml_ext.topology.file import UNBOUNDED, autoscaler
from mlops_ext.errors import TopologyError
from mlops_ext.queues.check import Worker

# Where the Kubernetes glue keeps tasks whose pods are pending.
HIDDEN_QUEUE = "k8s_scheduler"

# Workers that run one task for another worker: in services mode, and under the Kubernetes glue.
_CHILD = re.compile(r"^(.+?):(?:service:)?[0-9a-f]{32}$")
_BOUNDLESS = frozenset({"services-mode", "services_mode", "k8s", "k8s-glue", "kubernetes"})
# The last number of "4", "0-4" and "min 0, max 4".
_NUMBER = re.compile(r"(?:min\W*)?(?:\d+\D+?)?(\d{1,9})")


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveWorker:
    """A worker as the server lists it.

    Attributes:
        name: its id.
        queues: names of the queues it listens to.
        slots: how many tasks it runs at a time, None for any number.
        age_s: seconds since its last report.
        fresh: whether that is recent enough to count on it.
    """

    name: str
    queues: tuple[str, ...]
    slots: int | None
    age_s: float = 0.0
    fresh: bool = True

    @property
    def usable(self) -> bool:
        """Whether this worker takes tasks, as far as the server tells."""
        return self.fresh and bool(self.queues)

    @property
    def plain(self) -> Worker:
        """The same, as the checker wants it."""
        return Worker(name=self.name, queues=self.queues, slots=self.slots)


def parent_of(worker: str) -> str:
    """The worker whose slot *worker* takes: its own, or that of the one it runs a task for."""
    found = _CHILD.match(worker)
    return found.group(1) if found else worker


def parse_time(text: object) -> dt.datetime | None:
    """The moment that the server wrote as *text*, or None if it is none."""
    try:
        found = dt.datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=dt.timezone.utc)


def live_workers(
    rows: Sequence[Mapping[str, Any]],
    queue_rows: Sequence[Mapping[str, Any]],
    tasks: Mapping[str, Mapping[str, Any]],
    moment: dt.datetime,
    notes: list[str],
    fresh_s: float,
) -> list[LiveWorker]:
    """The workers of the server's *rows*, and those that autoscalers may start.

    Their slots are what tags and *queue_rows* declare, or what *tasks* give away. What cannot be
    read is added to *notes*, and does not count.
    """
    names = [str(row["id"]) for row in rows]
    boundless = {parent_of(name) for name in names if parent_of(name) != name}
    boundless |= _glue_workers(rows, tasks)
    workers = []
    for name, row in zip(names, rows, strict=True):
        if parent_of(name) != name:
            continue
        seen = parse_time(row.get("last_activity_time") or row.get("last_report_time"))
        age_s = float("inf") if seen is None else max(0.0, (moment - seen).total_seconds())
        words = [word for tag in row.get("tags") or [] for word in re.split(r"[\s,]+", str(tag))]
        slots = None if name in boundless or _BOUNDLESS & {w.casefold() for w in words} else 1
        for text in _values(words, "capacity"):
            where = f"tag 'capacity:{text}' of worker {name}"
            (slots,) = _capacity(text, where, notes, otherwise=[1])
        workers.append(
            LiveWorker(
                name=name,
                queues=_queues(row),
                slots=slots,
                age_s=age_s,
                fresh=age_s <= fresh_s,
            )
        )
    scaled = _autoscaled(tasks)
    for row in queue_rows:
        queue = str(row["name"])
        for slots in _declared(row, "capacity", notes):
            serving = [each for each in workers if queue in each.queues and each.fresh]
            if len(serving) == 1:
                workers[workers.index(serving[0])] = replace(serving[0], slots=slots)
        for most in (*_declared(row, "autoscaled", notes), *scaled.get(queue, ()))[:1]:
            scaler = autoscaler(queue, most, [each.plain for each in workers if each.fresh])
            workers.append(LiveWorker(name=scaler.name, queues=(queue,), slots=scaler.slots))
    return workers


def _queues(row: Mapping[str, Any]) -> tuple[str, ...]:
    names = (str(queue["name"]) for queue in row.get("queues") or [])
    return tuple(name for name in names if HIDDEN_QUEUE not in name)


def said(row: Mapping[str, Any], key: str) -> list[str]:
    """What the metadata of a queue's *row* says about *key*, or its tags ``key:value``."""
    metadata = row.get("metadata") or {}
    if isinstance(metadata, list):
        metadata = {each.get("key"): each for each in metadata}
    if key in metadata:
        return [str(value_at(metadata, key))]
    return _values(row.get("tags") or [], key)


def value_at(document: Mapping[str, Any], *path: str) -> Any:
    """The value of the entry at *path* of a task or a queue, or None: ``{"value": …}``, or bare."""
    found: Any = document
    for key in path:
        found = found.get(key) if isinstance(found, dict) else None
    return found.get("value") if isinstance(found, dict) else found


def json_in(document: Mapping[str, Any], section: str) -> Any:
    """What the configuration *section* of a task holds as JSON, or None.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return json.loads(value_at(document, "configuration", section) or "null")
    except (TypeError, RecursionError) as error:
        raise ValueError(f"its configuration {section} is not readable") from error


def labels_said(row: Mapping[str, Any]) -> list[str]:
    """The labels that a queue has by its metadata ``labels``, or its tags ``label:gpu``."""
    found = [*said(row, "labels"), *said(row, "label")]
    return [label for text in found for label in re.split(r"[\s,]+", text) if label]


def _values(tags: Iterable[object], key: str) -> list[str]:
    """What *tags* say about *key*: "4" for the tag ``capacity:4``."""
    pairs = (str(tag).replace("=", ":", 1).partition(":") for tag in tags)
    return [value.strip() for name, _, value in pairs if name.casefold() == key and value]


def _declared(row: Mapping[str, Any], key: str, notes: list[str]) -> list[int | None]:
    """The slots that a queue declares under *key*, or nothing."""
    where = f"metadata {key} of queue {row['name']}"
    return [each for text in said(row, key)[:1] for each in _capacity(text, where, notes)]


def _capacity(
    text: str, where: str, notes: list[str], otherwise: Sequence[int] = ()
) -> Sequence[int | None]:
    """Read slots in *text*: a number, None if unbounded; else add a note, return *otherwise*."""
    if text.casefold() == UNBOUNDED:
        return [None]
    if (found := _NUMBER.fullmatch(text)) is None:
        error = TopologyError(where, text, f"a whole number or {UNBOUNDED}")
        notes.append(f"{error}; it {'counts as one slot' if otherwise else 'is ignored'}")
        return otherwise
    return [int(found[1])]


def _glue_workers(
    rows: Iterable[Mapping[str, Any]], tasks: Mapping[str, Mapping[str, Any]]
) -> set[str]:
    """Find the workers of the Kubernetes glue, which notes its queue on each task it takes."""
    place = ("hyperparams", "properties", "k8s-queue")
    noted = [value_at(document, *place) for document in tasks.values()]
    found = set()
    for queue in {each for each in noted if isinstance(each, str)}:
        serving = [str(row["id"]) for row in rows if queue in _queues(row)]
        found |= set(serving) if len(serving) == 1 else set()
    return found


def _autoscaled(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, list[int | None]]:
    """Find how many machines autoscalers start at most, by queue, on the SDK autoscaler's task.

    As JSON with ``resource_configurations``, and ``queues: {queue: [[resource, most], …]}``.
    """
    found: dict[str, list[int | None]] = {}
    for document in tasks.values():
        with contextlib.suppress(
            ValueError, ArithmeticError, TypeError, LookupError, AttributeError
        ):
            kept = json_in(document, "General")
            if document.get("status") == Status.IN_PROGRESS and "resource_configurations" in kept:
                for queue, resources in kept["queues"].items():
                    found[queue] = [sum(int(each[1]) for each in resources)]
    return found
