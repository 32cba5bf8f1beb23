"""A topology in the form the checks work on: numbered tasks, and workers that are alike merged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlops_ext.queues.topology import Pipeline, Topology, Worker


@dataclass(slots=True, kw_only=True)
class Node:
    """A controller or a step of one pipeline; all instances of the pipeline share it.

    Attributes:
        index: its number in `Model.nodes`.
        path: names from the pipeline down.
        pipeline: number of its pipeline.
        queue: number of its queue; a controller that holds no slot has one that is never full.
        parent: number of the controller that enqueues it, or None.
        children: numbers of what it enqueues; empty for a plain step.
        after: numbers of the siblings that must have ended before.
        precedes: whether a sibling waits for it.
    """

    index: int
    path: tuple[str, ...]
    pipeline: int
    queue: int
    parent: int | None
    children: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    precedes: bool = False


@dataclass(slots=True)  # thousands are made, and frozen ones take three times as long
class WorkerClass:
    """Workers that serve the same queues, so that it is all one which of them takes a task.

    Attributes:
        queues: numbers of the queues, of those that tasks are put in.
        workers: the workers, each with a slot at least; none for what runs outside of them.
        slots: slots of all of them together; None if there is no bound.
    """

    queues: frozenset[int]
    workers: tuple[Worker, ...]
    slots: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A topology, numbered.

    Attributes:
        topology: what was numbered.
        nodes: all tasks; a parent comes before its children.
        roots: per pipeline, the number of its controller.
        counts: per pipeline, how many instances of it there are.
        queues: names of the queues that tasks are put in.
        classes: the workers that serve them and have a slot.
        classes_of: per queue, the numbers of the classes that serve it.
    """

    topology: Topology
    nodes: list[Node]
    roots: list[int]
    counts: list[int]
    queues: list[str]
    classes: list[WorkerClass]
    classes_of: list[tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One instance of a pipeline in a deadlock.

    Attributes:
        pipeline: number of the pipeline.
        holds: number of each controller that holds, and the worker whose slot it holds.
        waiting: numbers of those of its tasks that wait forever.
    """

    pipeline: int
    holds: dict[int, str | None]
    waiting: tuple[int, ...]


class _Builder:
    def __init__(self) -> None:
        self.numbers: dict[tuple[str | None, bool], int] = {}
        self.nodes: list[Node] = []

    def queue(self, name: str | None, *, pinned: bool = False) -> int:
        """The number of queue *name*; or that of worker *name*'s own, for what it runs already."""
        return self.numbers.setdefault((name, pinned), len(self.numbers))

    def add_pipeline(self, number: int, pipeline: Pipeline) -> int:
        """Number the tasks of *pipeline*; returns the number of its controller."""
        pinned = pipeline.worker is not None
        queue = self.queue(pipeline.worker or pipeline.queue, pinned=pinned)
        root = self._add(number, (pipeline.name,), queue, None)
        pending = [(root, pipeline.steps)]
        while pending:
            parent, steps = pending.pop()
            made = {
                step.name: self._add(
                    number, (*parent.path, step.name), self.queue(step.queue), parent.index
                )
                for step in steps
            }
            parent.children = tuple(each.index for each in made.values())
            for step in steps:
                before = {name: made[name] for name in step.after}
                made[step.name].after = tuple(sorted(each.index for each in before.values()))
                for each in before.values():
                    each.precedes = True
            pending += [(made[step.name], step.steps) for step in steps if step.steps]
        return root.index

    def _add(self, pipeline: int, path: tuple[str, ...], queue: int, parent: int | None) -> Node:
        node = Node(index=len(self.nodes), path=path, pipeline=pipeline, queue=queue, parent=parent)
        self.nodes.append(node)
        return node


def compile_topology(topology: Topology) -> Model:
    """*topology*, numbered: linear in its size."""
    builder = _Builder()
    roots = [builder.add_pipeline(at, each) for at, each in enumerate(topology.pipelines)]
    alike: defaultdict[frozenset[int], list[Worker]] = defaultdict(list)
    numbers = builder.numbers
    plain = {name: number for (name, pinned), number in numbers.items() if not pinned}
    pins = {name: number for (name, pinned), number in numbers.items() if pinned}
    # Many workers list the same queues, and a list may be long: each list is looked up once.
    listed: dict[tuple[str, ...], frozenset[int]] = {}
    for worker in topology.workers:
        served = listed.get(worker.queues)
        if served is None:
            served = frozenset([plain[name] for name in worker.queues if name in plain])
            listed[worker.queues] = served
        if worker.name in pins:
            served |= {pins[worker.name]}
        if served and worker.slots != 0:
            alike[served].append(worker)
    if None in plain:
        alike[frozenset((plain[None],))] = []
    return Model(
        topology=topology,
        nodes=builder.nodes,
        roots=roots,
        counts=[each.instances for each in topology.pipelines],
        queues=[name or "" for name, _ in numbers],
        **classify(alike, len(numbers)),
    )


def classify(alike: Mapping[frozenset[int], Sequence[Worker]], queues: int) -> dict[str, Any]:
    """The fields ``classes`` and ``classes_of`` of a `Model` with so many *queues*.

    Args:
        alike: the workers with slots, by the numbers of the queues that they serve.
        queues: how many queues there are.
    """
    classes = []
    classes_of: list[list[int]] = [[] for _ in range(queues)]
    for at, (served, workers) in enumerate(alike.items()):
        slots = 0 if workers else None
        for worker in workers:
            slots = None if slots is None or worker.slots is None else slots + worker.slots
        classes.append(WorkerClass(served, tuple(workers), slots))
        for queue in served:
            classes_of[queue].append(at)
    return {"classes": classes, "classes_of": [tuple(each) for each in classes_of]}
