"""Where everything stands in the picture of a topology: tasks, then queues, then workers.

What a refusal names comes first, one box each, and in red. All else is folded: a pipeline is one
box, and so are the workers that serve the same queues.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from mlops_ext.queues.check import Chain, ChainKind, Hold, Pipeline, Step, Topology, Verdict, Worker

_MARGIN, _GAP, _COLUMN_GAP = 24.0, 12.0, 110.0
_BOX_WIDTH, _INDENT, _LINE = 230.0, 22.0, 15.0
_MOST_TEXT = 32
"""Characters of twelve-pixel text that fit a box."""
_SMALL = 8
"""Tasks up to which nothing is folded."""
_MOST = 40
"""Boxes in a column, about two pages high; what is left is counted in one more."""

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A task, queue or worker, or several that are folded.

    Attributes:
        kind: "controller", "step", "queue" or "worker".
        x: left side; *y* is the upper side.
        texts: its lines, the first in bold.
        full: what it shows at full length.
        stuck: whether a refusal names it.
    """

    kind: str
    x: float
    y: float
    texts: tuple[str, ...]
    full: str
    stuck: bool
    width: float = _BOX_WIDTH

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

    def column(self, x: float, y: float, items: Sequence[_Item]) -> list[Box]:
        """Put *items* below each other, and what is too much in one box more."""
        found = []
        if len(items) > _MOST:
            more = f"and {len(items) - _MOST} more"
            items = [*items[:_MOST], _Item(kind=items[-1].kind, texts=(more,), full=more)]
        for item in items:
            texts = (f"{e[: _MOST_TEXT - 1]}…" if len(e) > _MOST_TEXT else e for e in item.texts)
            box = Box(
                kind=item.kind,
                x=x + _INDENT * item.depth,
                y=y,
                texts=tuple(texts),
                full=item.full,
                stuck=item.stuck,
            )
            found.append(box)
            y += box.height + _GAP
        self.boxes += found
        self.height = max(self.height, y)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    """What becomes a box; *queues* are those that it waits in, or serves."""

    kind: str
    texts: tuple[str, ...]
    full: str
    stuck: bool = False
    queues: tuple[str, ...] = ()
    waits: bool = False
    holds: tuple[str, ...] = ()
    depth: int = 0


def lay_out(topology: Topology, verdict: Verdict | None) -> Drawing:
    """The picture of *topology*; what the chains of *verdict* name is drawn first, as stuck."""
    chains = verdict.chains if verdict is not None else ()
    holds = list(dict.fromkeys(hold for each in chains for hold in (*each.holds, *each.blockers)))
    waiting = {chain.waiting for chain in chains}
    pipelines = sorted(topology.pipelines, key=lambda each: not _named(each.name, waiting, holds))
    small = sum(1 + len(each.steps) for each in topology.pipelines) <= _SMALL
    tasks = [item for each in pipelines for item in _tasks(each, waiting, holds, whole=small)]
    stuck_queues = {chain.queue for chain in chains if chain.queue}
    used = dict.fromkeys(queue for item in tasks for queue in item.queues)
    queues = sorted(used, key=lambda queue: queue not in stuck_queues)
    serving = [each for each in topology.workers if used.keys() & each.queues]
    workers = _workers(serving, holds)
    drawing = Drawing(title=_title(verdict))
    top, x = _captions(drawing, chains), _MARGIN
    task_boxes = drawing.column(x, top, tasks)
    x = max((box.right[0] for box in task_boxes), default=x) + _COLUMN_GAP
    queue_items = [
        _Item(kind="queue", texts=(queue, "queue"), full=queue, stuck=queue in stuck_queues)
        for queue in queues
    ]
    queue_boxes = dict(zip(queues, drawing.column(x, top, queue_items), strict=False))
    worker_boxes = drawing.column(x + _BOX_WIDTH + _COLUMN_GAP, top, workers)
    for item, box in zip(tasks, task_boxes, strict=False):
        for queue in item.queues:
            _join(drawing, box, queue_boxes.get(queue), stuck=item.waits, dashed=True)
    for item, box in zip(workers, worker_boxes, strict=False):
        for queue in item.queues:
            stuck = item.stuck and queue in stuck_queues
            _join(drawing, queue_boxes.get(queue), box, stuck=stuck)
        for task, holder in zip(tasks, task_boxes, strict=False):
            if set(task.holds) & set(item.holds):
                _join(drawing, holder, box, stuck=True, holds=True)
    legend = "dashed: is put in, and waits · solid: is served by · dotted: holds a slot of"
    drawing.height += _MARGIN
    drawing.captions.append((_MARGIN, drawing.height, 11, False, legend))
    drawing.width = x + 2 * _BOX_WIDTH + _COLUMN_GAP + _MARGIN
    drawing.height += _MARGIN
    return drawing


def _join(drawing: Drawing, start: Box | None, end: Box | None, **style: bool) -> None:
    if start is not None and end is not None:
        drawing.lines.append(Line(start=start.right, end=end.left, **style))


def _title(verdict: Verdict | None) -> str:
    if verdict is None:
        return "Topology"
    if verdict.safe:
        return "Safe: no order of events ends in a deadlock"
    if not verdict.exact:
        return "Refused as a precaution"
    kinds = {chain.kind for chain in verdict.chains}
    return "Unsafe: can deadlock" if ChainKind.DEADLOCK in kinds else "Unsafe: never ends"


def _captions(drawing: Drawing, chains: Sequence[Chain]) -> float:
    """Write the title and the first reasons; returns where the boxes begin."""
    y = _MARGIN + 14
    drawing.captions.append((_MARGIN, y, 17, bool(chains), drawing.title))
    for chain in chains[:3]:
        for text in textwrap.wrap(chain.text, 120, subsequent_indent="      "):
            y += 18
            drawing.captions.append((_MARGIN, y, 12, True, text))
    return y + 24


def _plain(hold: Hold) -> Path:
    """The holder's path without the number of its instance."""
    return (re.sub(r" #\d+$", "", hold.task[0]), *hold.task[1:])


def _named(pipeline: str, waiting: Iterable[Path], holds: Iterable[Hold]) -> bool:
    """Whether a refusal names *pipeline*."""
    return any(path[0] == pipeline for path in (*waiting, *map(_plain, holds)))


def _tasks(
    pipeline: Pipeline, waiting: set[Path], holds: Sequence[Hold], *, whole: bool
) -> list[_Item]:
    """The boxes of *pipeline*: those that a refusal names, or the *whole*, and one for the rest."""
    held: dict[Path, tuple[str, ...]] = {}
    for hold in holds:
        held[_plain(hold)] = (*held.get(_plain(hold), ()), *filter(None, [hold.worker]))
    found, others = list[_Item](), list[Step]()

    def add(path: Path, queue: str | None, notes: tuple[str, ...], steps: tuple[Step, ...]) -> None:
        found.append(
            _Item(
                kind="controller" if steps or len(path) == 1 else "step",
                texts=(path[-1], ", ".join(notes)),
                full="/".join(path),
                stuck=path in waiting or path in held,
                queues=(queue,) if queue else (),
                waits=path in waiting,
                holds=held.get(path, ()),
                depth=len(path) - 1,
            )
        )
        for step in steps:
            inner = (*path, step.name)
            if not whole and not any(each[: len(inner)] == inner for each in (*waiting, *held)):
                others.append(step)
                continue
            after = (f"after {', '.join(step.after)}",) if step.after else ()
            add(inner, step.queue, ("sub-pipeline" if step.steps else "step", *after), step.steps)

    many = (f"{pipeline.instances} at a time",) if pipeline.instances > 1 else ()
    on = (f"on {pipeline.worker}",) if pipeline.worker else ()
    add((pipeline.name,), pipeline.queue, ("controller", *many, *on), pipeline.steps)
    if others:
        below = list(_below(others))
        names = ", ".join(step.name for step in others)
        text = f"{len(below)} step{'s' if len(below) > 1 else ''}: {names}"
        queues = tuple(dict.fromkeys(step.queue for step in below))
        if found[0].stuck:
            found.append(_Item(kind="step", texts=(text,), full=names, queues=queues, depth=1))
        else:
            queues = tuple(dict.fromkeys((*found[0].queues, *queues)))
            found[0] = replace(found[0], texts=(*found[0].texts, text), queues=queues)
    return found


def _below(steps: Iterable[Step]) -> Iterable[Step]:
    """*steps* and all below them."""
    for step in steps:
        yield step
        yield from _below(step.steps)


def _workers(workers: Sequence[Worker], holds: Sequence[Hold]) -> list[_Item]:
    """The boxes of *workers*: those that are held one by one, the others by their queues."""
    held = {hold.worker for hold in holds}
    groups: dict[object, list[Worker]] = {}
    for each in sorted(workers, key=lambda each: each.name not in held):
        groups.setdefault(each.name if each.name in held else each.queues, []).append(each)
    found = []
    for group in groups.values():
        total = sum(each.slots or 0 for each in group)
        slots = "any number of slots" if any(e.slots is None for e in group) else f"slots: {total}"
        mine = [hold for hold in holds if hold.worker == group[0].name]
        names = ", ".join(each.name for each in group)
        found.append(
            _Item(
                kind="worker",
                texts=(
                    names if len(group) == 1 else f"{len(group)} agents",
                    *((names,) if len(group) > 1 else ()),
                    slots,
                    *(f"held by {'/'.join(hold.task)}" for hold in mine[:4]),
                ),
                full=names,
                stuck=bool(mine),
                queues=group[0].queues,
                holds=(group[0].name,) if mine else (),
            )
        )
    return found
