"""What steps go where, and what queues are made for: labels, said or told by a queue's name.

A fix sends a task only to a queue that was made for it. Nobody's steps land on a machine without
a GPU that they need, and no controller waits on a machine that is needed for work.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mlops_ext.queues.check import Step, Worker

# Label of a queue that is made for controllers.
CONTROLLERS = "services"

# Label that a queue has by its name, unless its labels are declared.
ACCELERATOR = "accelerator"

_FOR_CONTROLLERS = frozenset({"services", "controllers", "own-services"})
# Names of queues whose machines have accelerators: gpu, a100-box, h100.
_ACCELERATED = re.compile(r"gpu|cuda|tpu|rtx|dgx|(?<![a-z])[ahvltp]\d{1,3}(?!\d)", re.IGNORECASE)


def all_steps(steps: Iterable[Step]) -> Iterator[Step]:
    """*steps* and all below them."""
    for step in steps:
        yield step
        yield from all_steps(step.steps)


def pipeline_of(path: tuple[str, ...]) -> str:
    """The pipeline that the task at *path* belongs to, without the number of its instance."""
    return re.sub(r" #\d+$", "", path[0])


def labels_of(queue: str, declared: Mapping[str, frozenset[str]]) -> frozenset[str]:
    """What *queue* is made for: what is *declared*, or else what its name tells."""
    if queue in declared:
        return declared[queue]
    return frozenset({ACCELERATOR}) if _ACCELERATED.search(queue) else frozenset()


def is_for_controllers(queue: str, declared: Mapping[str, frozenset[str]], services: str) -> bool:
    """Whether *queue* is for controllers: the one called *services*, or so labelled or named."""
    named = queue == services or queue in _FOR_CONTROLLERS
    return CONTROLLERS in declared[queue] if queue in declared and queue != services else named


def fits(step: Step, queue: str, declared: Mapping[str, frozenset[str]]) -> bool:
    """Whether *queue* was made for *step*: it has all that the step needs.

    A step that says nothing needs what the queue has that it goes to now, no more and no less.
    """
    offered = labels_of(queue, declared)
    return offered >= set(step.needs) if step.needs else offered == labels_of(step.queue, declared)


def take_slots(workers: Sequence[Worker], taken: Sequence[str]) -> tuple[Worker, ...]:
    """*workers* with a slot less for each time that a worker is named in *taken*."""
    return tuple(
        each
        if each.slots is None or each.name not in taken
        else dataclasses.replace(each, slots=max(0, each.slots - taken.count(each.name)))
        for each in workers
    )
