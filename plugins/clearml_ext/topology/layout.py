"""Where everything stands in the picture of a topology: tasks, then queues, then workers."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from mlops_ext.queues.check import Chain, ChainKind, Hold, Step, Topology, Verdict

T = TypeVar("T")

FILL = {"controller": "#e8eefc", "step": "#f4f4f6", "queue": "#fff6dc", "worker": "#e6f5ea"}
EDGE = {"controller": "#4a6fd0", "step": "#8a8a94", "queue": "#c9a227", "worker": "#3f9a5c"}
RED, PALE_RED, GREY, INK = "#c62828", "#fdecea", "#9aa0a6", "#202124"

_MARGIN, _GAP, _COLUMN_GAP = 24.0, 14.0, 110.0
_BOX_WIDTH, _INDENT = 230.0, 22.0
_LINE = 15.0
_CHARACTERS = 28
"""Characters of twelve-pixel text that fit a box."""
_MOST = 60
"""Boxes in a column; of a larger topology only what the refusal names is drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A task, queue or worker."""

    kind: str
    x: float
    y: float
    width: float
    texts: tuple[str, ...]
    full: str
    stuck: bool

    @property
    def height(self) -> float:
        """As high as its texts."""
        return 12 + _LINE * len(self.texts)

    @property
    def left(self) -> tuple[float, float]:
        """Middle of the left side."""
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> tuple[float, float]:
        """Middle of the right side."""
        return self.x + self.width, self.y + self.height / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An arrow; dashed where a task waits, dotted where a controller holds, red where stuck."""

    start: tuple[float, float]
    end: tuple[float, float]
    stuck: bool
    dashed: bool = False
    holds: bool = False


@dataclass(slots=True, kw_only=True)
class Drawing:
    """Shapes and texts, in pixels from the upper left corner.

    Attributes:
        captions: x, y, size, red or not, text.
    """

    title: str
    width: float = 0
    height: float = 0
    boxes: list[Box] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    captions: list[tuple[float, float, int, bool, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    path: tuple[str, ...]
    queue: str | None
    nested: bool
    note: str


def lay_out(topology: Topology, verdict: Verdict | None) -> Drawing:
    """The picture of *topology*; what the chains of *verdict* name is marked as stuck."""
    chains = verdict.chains if verdict is not None else ()
    stuck_tasks = {chain.waiting for chain in chains}
    holds = dict.fromkeys(hold for chain in chains for hold in (*chain.holds, *chain.blockers))
    holders = {_plain(hold) for hold in holds}
    stuck_queues = {chain.queue for chain in chains if chain.queue}
    stuck_workers = {hold.worker for hold in holds if hold.worker}
    tasks = _reduce(_tasks(topology), lambda task: task.path in stuck_tasks or task.path in holders)
    queues = _queues(topology, tasks, stuck_queues)
    workers = _reduce(
        [each for each in topology.workers if set(each.queues) & set(queues)],
        lambda worker: worker.name in stuck_workers,
    )
    drawing = Drawing(title=_title(verdict))
    x, task_boxes = _MARGIN, {}
    top = _captions_height(drawing, chains)
    y = top
    for task in tasks:
        kind = "controller" if task.nested or len(task.path) == 1 else "step"
        indent = _INDENT * (len(task.path) - 1)
        box = _box(
            kind,
            x + indent,
            y,
            (task.path[-1], task.note),
            "/".join(task.path),
            stuck=task.path in stuck_tasks or task.path in holders,
        )
        task_boxes[task.path] = box
        y += box.height + _GAP
    bottom = y
    x = max((box.right[0] for box in task_boxes.values()), default=x) + _COLUMN_GAP
    queue_boxes, y = {}, top
    for queue in queues:
        box = _box("queue", x, y, (queue, "queue"), queue, stuck=queue in stuck_queues)
        queue_boxes[queue] = box
        y += box.height + _GAP
    bottom = max(bottom, y)
    x += _BOX_WIDTH + _COLUMN_GAP
    y = top
    for worker in workers:
        slots = "any number of slots" if worker.slots is None else f"slots: {worker.slots}"
        held = [hold for hold in holds if hold.worker == worker.name]
        texts = (worker.name, slots, *(f"held by {'/'.join(hold.task)}" for hold in held[:4]))
        box = _box("worker", x, y, texts, worker.name, stuck=bool(held))
        for queue in worker.queues:
            if queue in queue_boxes:
                drawing.lines.append(
                    Line(
                        start=queue_boxes[queue].right,
                        end=box.left,
                        stuck=bool(held) and queue in stuck_queues,
                    )
                )
        for hold in held:
            if _plain(hold) in task_boxes:
                drawing.lines.append(
                    Line(start=task_boxes[_plain(hold)].right, end=box.left, stuck=True, holds=True)
                )
        drawing.boxes.append(box)
        y += box.height + _GAP
    _join_tasks(drawing, tasks, task_boxes, queue_boxes, stuck_tasks)
    drawing.boxes += [*task_boxes.values(), *queue_boxes.values()]
    y = max(bottom, y) + _MARGIN
    legend = "dashed: is put in, and waits · solid: is served by · dotted: holds a slot of"
    drawing.captions.append((_MARGIN, y, 11, False, legend))
    drawing.width, drawing.height = x + _BOX_WIDTH + _MARGIN, y + _MARGIN
    return drawing


def _join_tasks(
    drawing: Drawing,
    tasks: Sequence[_Task],
    task_boxes: dict[tuple[str, ...], Box],
    queue_boxes: dict[str, Box],
    stuck_tasks: set[tuple[str, ...]],
) -> None:
    for task in tasks:
        if task.queue is not None and task.queue in queue_boxes:
            drawing.lines.append(
                Line(
                    start=task_boxes[task.path].right,
                    end=queue_boxes[task.queue].left,
                    stuck=task.path in stuck_tasks,
                    dashed=True,
                )
            )


def _title(verdict: Verdict | None) -> str:
    if verdict is None:
        return "Topology"
    if verdict.safe:
        return "Safe: no order of events ends in a deadlock"
    if not verdict.exact:
        return "Refused as a precaution"
    kinds = {chain.kind for chain in verdict.chains}
    return "Unsafe: can deadlock" if ChainKind.DEADLOCK in kinds else "Unsafe: never ends"


def _captions_height(drawing: Drawing, chains: Sequence[Chain]) -> float:
    y = _MARGIN + 14
    drawing.captions.append((_MARGIN, y, 17, bool(chains), drawing.title))
    for chain in chains[:3]:
        for text in textwrap.wrap(chain.text, 120, subsequent_indent="      "):
            y += 18
            drawing.captions.append((_MARGIN, y, 12, True, text))
    return y + 24


def _tasks(topology: Topology) -> list[_Task]:
    found: list[_Task] = []

    def add(path: tuple[str, ...], steps: tuple[Step, ...]) -> None:
        for step in steps:
            note = f"after {', '.join(step.after)}" if step.after else "step"
            if step.steps:
                note = "sub-pipeline" + (f", {note}" if step.after else "")
            inner = (*path, step.name)
            found.append(_Task(path=inner, queue=step.queue, nested=bool(step.steps), note=note))
            add(inner, step.steps)

    for each in topology.pipelines:
        note = "controller" + (f", {each.instances} at a time" if each.instances > 1 else "")
        note = f"controller, on {each.worker}" if each.worker else note
        found.append(_Task(path=(each.name,), queue=each.queue, nested=True, note=note))
        add((each.name,), each.steps)
    return found


def _queues(topology: Topology, tasks: Sequence[_Task], stuck: set[str]) -> list[str]:
    names = [task.queue for task in tasks if task.queue is not None]
    if len(topology.workers) <= _MOST:
        names += [queue for worker in topology.workers for queue in worker.queues]
    return _reduce(list(dict.fromkeys(names)), lambda queue: queue in stuck)


def _reduce(items: list[T], matters: Callable[[T], bool]) -> list[T]:
    """*items*, or where there are too many, first those that matter, then some others."""
    if len(items) <= _MOST:
        return items
    return sorted(items, key=lambda item: not matters(item))[:_MOST]


def _plain(hold: Hold) -> tuple[str, ...]:
    """The holder's path without the number of its instance."""
    return (re.sub(r" #\d+$", "", hold.task[0]), *hold.task[1:])


def _box(kind: str, x: float, y: float, texts: tuple[str, ...], full: str, *, stuck: bool) -> Box:
    short = tuple(
        text if len(text) <= _CHARACTERS else f"{text[: _CHARACTERS - 1]}…" for text in texts
    )
    return Box(kind=kind, x=x, y=y, width=_BOX_WIDTH, texts=short, full=full, stuck=stuck)
