"""Where everything stands in the picture of a topology: tasks, then queues, then workers.

What a refusal names comes first, one box each, and in red. All else is folded: a pipeline is one
box, and so are the workers that serve the same queues.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from clearml_ext.topology.labels import all_steps, pipeline_of
from mlops_ext.queues.check import Chain, ChainKind, Hold, Pipeline, Step, Topology, Verdict, Worker

_MARGIN, _GAP, _COLUMN_GAP = 24.0, 12.0, 110.0
_BOX_WIDTH, _INDENT, _LINE = 230.0, 22.0, 15.0
# Characters of twelve-pixel text that fit a box.
_WIDTH = 32
# Tasks up to which nothing is folded.
_SMALL = 8
# Boxes in a column, about two pages high; what is left is counted in one more.
_MOST = 40

Path = tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Box:
    """A task, queue or worker, or several that are folded.

    Attributes:
        kind: "controller", "step", "queue" or "worker".
        texts: its lines, the first in bold.
        full: what it shows at full length.
        stuck: whether a refusal names it.
        waits: whether it waits in its queues forever.
        queues: those that it waits in, or serves.
        holds: the workers that it holds, or is.
        depth: how far a task is from its pipeline's controller.
        x: left side.
        y: upper side.
    """

    kind: str
    texts: tuple[str, ...]
    full: str
    stuck: bool = False
    waits: bool = False
    queues: tuple[str, ...] = ()
    holds: tuple[str, ...] = ()
    depth: int = 0
    x: float = 0
    y: float = 0
    width: float = _BOX_WIDTH

    @property
    def height(self) -> float:
        """As high as its texts."""
        return 12 + _LINE * len(self.texts)

    @property
    def middle(self) -> float:
        """Where arrows begin and end."""
        return self.y + self.height / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """An arrow; dashed if a task waits, dotted if a controller holds, red if it is stuck."""

    start: Box
    end: Box
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

    def column(self, x: float, y: float, boxes: Sequence[Box]) -> list[Box]:
        """Put *boxes* below each other, and what is too much in one more."""
        shown = list(boxes[:_MOST])
        if len(boxes) > _MOST:
            more = f"and {len(boxes) - _MOST} more"
            shown.append(Box(kind=boxes[-1].kind, texts=(more,), full=more))
        for box in shown:
            box.x, box.y = x + _INDENT * box.depth, y
            box.texts = tuple(e if len(e) <= _WIDTH else f"{e[: _WIDTH - 1]}…" for e in box.texts)
            y += box.height + _GAP
        self.boxes += shown
        self.height = max(self.height, y)
        return shown


def lay_out(topology: Topology, verdict: Verdict) -> Drawing:
    """The picture of *topology*; what the chains of *verdict* name is drawn first, as stuck."""
    chains = verdict.chains
    holds = list(dict.fromkeys(hold for each in chains for hold in (*each.holds, *each.blockers)))
    waiting = {chain.waiting for chain in chains}
    named = {path[0] for path in (*waiting, *map(_plain, holds))}
    pipelines = sorted(topology.pipelines, key=lambda each: each.name not in named)
    small = sum(1 + len(each.steps) for each in topology.pipelines) <= _SMALL
    tasks = [item for each in pipelines for item in _tasks(each, waiting, holds, whole=small)]
    stuck = {chain.queue for chain in chains}
    used = dict.fromkeys(queue for item in tasks for queue in item.queues)
    queues = sorted(used, key=lambda queue: queue not in stuck)
    serving = [each for each in topology.workers if used.keys() & each.queues]
    drawing = Drawing(title=_title(verdict))
    lines = drawing.lines
    top, x = _captions(drawing, chains), _MARGIN
    tasks = drawing.column(x, top, tasks)
    x = max((box.x + box.width for box in tasks), default=x) + _COLUMN_GAP
    boxes = [Box(kind="queue", texts=(q, "queue"), full=q, stuck=q in stuck) for q in queues]
    queue_boxes = {box.full: box for box in drawing.column(x, top, boxes)}
    workers = drawing.column(x + _BOX_WIDTH + _COLUMN_GAP, top, _workers(serving, holds))
    for box in tasks:
        for queue in filter(None, map(queue_boxes.get, box.queues)):
            lines.append(Line(start=box, end=queue, stuck=box.waits, dashed=True))
    for worker in workers:
        for queue in filter(None, map(queue_boxes.get, worker.queues)):
            both = worker.stuck and queue.stuck
            lines.append(Line(start=queue, end=worker, stuck=both))
        for box in tasks:
            if set(box.holds) & set(worker.holds):
                lines.append(Line(start=box, end=worker, stuck=True, holds=True))
    legend = "dashed: is put in, and waits · solid: is served by · dotted: holds a slot of"
    drawing.height += _MARGIN
    drawing.captions.append((_MARGIN, drawing.height, 11, False, legend))
    drawing.width = x + 2 * _BOX_WIDTH + _COLUMN_GAP + _MARGIN
    drawing.height += _MARGIN
    return drawing


def _title(verdict: Verdict) -> str:
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
    return (pipeline_of(hold.task), *hold.task[1:])


def _tasks(
    pipeline: Pipeline, waiting: set[Path], holds: Sequence[Hold], *, whole: bool
) -> list[Box]:
    """The boxes of *pipeline*: those that a refusal names, or the *whole*, and one for the rest."""
    held: dict[Path, tuple[str, ...]] = {}
    for hold in holds:
        held[_plain(hold)] = (*held.get(_plain(hold), ()), *filter(None, [hold.worker]))
    found, others = list[Box](), list[Step]()

    def add(path: Path, queue: str | None, notes: tuple[str, ...], steps: tuple[Step, ...]) -> None:
        found.append(
            Box(
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
        below = list(all_steps(others))
        names = ", ".join(step.name for step in others)
        text = f"{len(below)} step{'s' if len(below) > 1 else ''}: {names}"
        queues = tuple(dict.fromkeys(step.queue for step in below))
        if found[0].stuck:
            found.append(Box(kind="step", texts=(text,), full=names, queues=queues, depth=1))
        else:
            queues = tuple(dict.fromkeys((*found[0].queues, *queues)))
            found[0] = replace(found[0], texts=(*found[0].texts, text), queues=queues)
    return found


def _workers(workers: Sequence[Worker], holds: Sequence[Hold]) -> list[Box]:
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
            Box(
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
