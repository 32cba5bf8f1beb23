"""Runs of a topology, played out event by event: for demonstrations, and for those who doubt.

The checker reasons about all runs at once. This plays single ones: a free slot takes a waiting
task, a plain step ends, a controller ends with its last step, in random order.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

from mlops_ext.queues.check import Step, Topology


@dataclass(slots=True, eq=False)
class _Task:
    name: str
    queue: str | None
    pinned: str | None
    steps: tuple[Step, ...]
    parent: _Task | None = None
    place: int | None = None
    left: dict[str, Step] = field(default_factory=dict)
    launched: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Run:
    topology: Topology
    rng: random.Random
    waiting: list[_Task] = field(default_factory=list)
    running: list[_Task] = field(default_factory=list)
    free: list[float] = field(default_factory=list)

    def play(self) -> bool:
        """Play to the end; returns whether tasks are left that wait forever."""
        slots = (each.slots for each in self.topology.workers)
        self.free = [float("inf") if each is None else each for each in slots]
        for pipeline in self.topology.pipelines:
            for _ in range(pipeline.instances):
                task = _Task(pipeline.name, pipeline.queue, pipeline.worker, pipeline.steps)
                if pipeline.queue is None and pipeline.worker is None:
                    self._start(task, None)
                else:
                    self.waiting.append(task)
        while True:
            starts = list(self._possible_starts())
            ends = [task for task in self.running if not task.steps]
            if not starts and not ends:
                return bool(self.waiting or self.running)
            at = self.rng.randrange(len(starts) + len(ends))
            if at < len(starts):
                task, place = starts[at]
                self.waiting.remove(task)
                self._start(task, place)
            else:
                self._end(ends[at - len(starts)])

    def _possible_starts(self) -> Iterator[tuple[_Task, int]]:
        for task in self.waiting:
            for place, worker in enumerate(self.topology.workers):
                serves = worker.name == task.pinned if task.pinned else task.queue in worker.queues
                if serves and self.free[place] >= 1:
                    yield task, place

    def _start(self, task: _Task, place: int | None) -> None:
        task.place = place
        task.left = {step.name: step for step in task.steps}
        self.running.append(task)
        if place is not None:
            self.free[place] -= 1
        self._launch(task)

    def _launch(self, task: _Task) -> None:
        """Enqueue the steps of the controller *task* whose predecessors have ended."""
        for step in task.steps:
            if step.name in task.launched or any(name in task.left for name in step.after):
                continue
            task.launched.add(step.name)
            self.waiting.append(_Task(step.name, step.queue, None, step.steps, parent=task))

    def _end(self, task: _Task) -> None:
        self.running.remove(task)
        if task.place is not None:
            self.free[task.place] += 1
        parent = task.parent
        if parent is None:
            return
        del parent.left[task.name]
        if parent.left:
            self._launch(parent)
        else:
            self._end(parent)


def hanging_runs(topology: Topology, runs: int, seed: int = 0) -> int:
    """How many of *runs* random runs of *topology* end with tasks that wait forever."""
    rng = random.Random(seed)  # noqa: S311  # a simulation, no secret
    return sum(_Run(topology, rng).play() for _ in range(runs))
