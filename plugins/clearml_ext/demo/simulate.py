"""Runs of a topology, played out event by event: for demonstrations, and for those who doubt.

The checker reasons about all runs at once. This plays single ones: a free slot takes a waiting
task, a plain step ends, a controller ends with its last step, in random order.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from mlops_ext.queues.check import Pipeline, Step, Topology, Worker

_OUTSIDE = Worker(name="outside", queues=("outside",), slots=None)
"""Where controllers run that hold no worker."""


@dataclass(slots=True, eq=False)
class _Task:
    what: Pipeline | Step
    parent: _Task | None = None
    place: str = ""
    launched: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)

    def ready(self) -> Iterable[_Task]:
        """The tasks of the steps that may be enqueued now, each once."""
        for step in self.what.steps:
            if step.name not in self.launched and self.ended.issuperset(step.after):
                self.launched.add(step.name)
                yield _Task(step, parent=self)


def _hangs(topology: Topology, rng: random.Random) -> bool:
    """Play one run; returns whether tasks are left that wait forever."""
    workers = (*topology.workers, _OUTSIDE)
    free = {each.name: float("inf") if each.slots is None else each.slots for each in workers}
    waiting = [_Task(each) for each in topology.pipelines for _ in range(each.instances)]
    running: list[_Task] = []
    while True:
        starts = [
            (task, worker.name)
            for task in waiting
            for worker in workers
            if free[worker.name] and (task.what.queue or _OUTSIDE.name) in worker.queues
        ]
        ends = [(task, "") for task in running if len(task.ended) == len(task.what.steps)]
        if not starts and not ends:
            return bool(waiting or running)
        task, place = rng.choice([*starts, *ends])
        if place:
            waiting.remove(task)
            running.append(task)
            task.place = place
            free[place] -= 1
            waiting += task.ready()
            continue
        running.remove(task)
        free[task.place] += 1
        if task.parent is not None:
            task.parent.ended.add(task.what.name)
            waiting += task.parent.ready()


def hanging_runs(topology: Topology, runs: int, seed: int = 0) -> int:
    """How many of *runs* random runs of *topology* end with tasks that wait forever."""
    rng = random.Random(seed)  # noqa: S311  # a simulation, no secret
    return sum(_hangs(topology, rng) for _ in range(runs))
