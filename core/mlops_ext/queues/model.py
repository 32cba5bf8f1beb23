"""A topology in the form the checks work on: numbered tasks, and workers that are alike merged."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from mlops_ext.queues.topology import Pipeline, Topology, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A controller or a step of one pipeline; all instances of the pipeline share it.

    Attributes:
        index: its number in `Model.nodes`.
        path: names from the pipeline down.
        pipeline: number of its pipeline.
        queue: number of its queue; None for a controller that holds no slot.
        parent: number of the controller that enqueues it, or None.
        children: numbers of what it enqueues; empty for a plain step.
        after: numbers of the siblings that must have ended before.
        precedes: whether a sibling waits for it.
    """

    index: int
    path: tuple[str, ...]
    pipeline: int
    queue: int | None
    parent: int | None
    children: tuple[int, ...]
    after: tuple[int, ...]
    precedes: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerClass:
    """Workers that serve the same queues, so that it is all one which of them takes a task.

    Attributes:
        queues: numbers of the queues, of those that tasks are put in.
        slots: slots of all of them together; None where one has no bound.
        workers: the workers.
    """

    queues: frozenset[int]
    slots: int | None
    workers: tuple[Worker, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A topology, numbered.

    Attributes:
        topology: what was numbered.
        nodes: all tasks; a parent comes before its children.
        roots: per pipeline, the number of its controller.
        queues: names of the queues that tasks are put in.
        classes: the workers that serve them and have a slot.
        classes_of: per queue, the numbers of the classes that serve it.
    """

    topology: Topology
    nodes: list[Node]
    roots: list[int]
    queues: list[str]
    classes: list[WorkerClass]
    classes_of: list[tuple[int, ...]]

    def instances(self, node: Node) -> int:
        """How many of *node* may exist at the same time."""
        return self.topology.pipelines[node.pipeline].instances

    def classes_for(self, node: Node) -> tuple[int, ...]:
        """Numbers of the classes that may take *node*."""
        return () if node.queue is None else self.classes_of[node.queue]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One instance of a pipeline in a deadlock.

    Attributes:
        pipeline: number of the pipeline.
        holds: number of each controller that holds, and of the class whose slot it holds.
        ended: numbers of the steps that ended.
    """

    pipeline: int
    holds: dict[int, int | None]
    ended: frozenset[int]


@dataclass(slots=True)
class _Builder:
    numbers: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    pins: dict[str, int] = field(default_factory=dict)

    def queue(self, name: str) -> int:
        number = self.numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number

    def pin(self, worker: str) -> int:
        """A queue of its own for a controller that is on *worker* already."""
        if worker not in self.pins:
            self.pins[worker] = len(self.names)
            self.names.append(f"the queue of {worker}")
        return self.pins[worker]

    def root_queue(self, pipeline: Pipeline) -> int | None:
        if pipeline.worker is not None:
            return self.pin(pipeline.worker)
        return None if pipeline.queue is None else self.queue(pipeline.queue)

    def add_pipeline(self, number: int, pipeline: Pipeline) -> int:
        """Number the tasks of *pipeline*; returns the number of its controller."""
        root = len(self.nodes)
        self._add(number, (pipeline.name,), self.root_queue(pipeline), None, (), precedes=False)
        pending = [(root, pipeline.steps)]
        while pending:
            parent, steps = pending.pop()
            first = len(self.nodes)
            place = {step.name: first + at for at, step in enumerate(steps)}
            preceding = {name for step in steps for name in step.after}
            for step in steps:
                self._add(
                    number,
                    (*self.nodes[parent].path, step.name),
                    self.queue(step.queue),
                    parent,
                    tuple(sorted({place[name] for name in step.after})),
                    precedes=step.name in preceding,
                )
            self._set_children(parent, tuple(range(first, first + len(steps))))
            pending += [(place[step.name], step.steps) for step in steps if step.steps]
        return root

    def _add(
        self,
        pipeline: int,
        path: tuple[str, ...],
        queue: int | None,
        parent: int | None,
        after: tuple[int, ...],
        *,
        precedes: bool,
    ) -> None:
        self.nodes.append(
            Node(
                index=len(self.nodes),
                path=path,
                pipeline=pipeline,
                queue=queue,
                parent=parent,
                children=(),
                after=after,
                precedes=precedes,
            )
        )

    def _set_children(self, index: int, children: tuple[int, ...]) -> None:
        old = self.nodes[index]
        self.nodes[index] = Node(
            index=index,
            path=old.path,
            pipeline=old.pipeline,
            queue=old.queue,
            parent=old.parent,
            children=children,
            after=old.after,
            precedes=old.precedes,
        )


def compile_topology(topology: Topology) -> Model:
    """*topology*, numbered: linear in its size."""
    builder = _Builder()
    roots = [builder.add_pipeline(at, each) for at, each in enumerate(topology.pipelines)]
    alike: defaultdict[frozenset[int], list[Worker]] = defaultdict(list)
    numbers, pins = builder.numbers, builder.pins
    # Many workers list the same queues, and a list may be long: each list is looked up once.
    listed: dict[tuple[str, ...], frozenset[int]] = {}
    for worker in topology.workers:
        served = listed.get(worker.queues)
        if served is None:
            served = frozenset(numbers[name] for name in worker.queues if name in numbers)
            listed[worker.queues] = served
        if worker.name in pins:
            served |= {pins[worker.name]}
        if served and worker.slots != 0:
            alike[served].append(worker)
    classes = [
        WorkerClass(queues=queues, slots=_total(workers), workers=tuple(workers))
        for queues, workers in alike.items()
    ]
    classes_of: list[list[int]] = [[] for _ in builder.names]
    for at, each in enumerate(classes):
        for queue in each.queues:
            classes_of[queue].append(at)
    return Model(
        topology=topology,
        nodes=builder.nodes,
        roots=roots,
        queues=builder.names,
        classes=classes,
        classes_of=[tuple(each) for each in classes_of],
    )


def _total(workers: list[Worker]) -> int | None:
    total = 0
    for worker in workers:
        if worker.slots is None:
            return None
        total += worker.slots
    return total
