"""Workers, pipelines and verdicts as plain data; every value is checked when it is made."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field

from mlops_ext.errors import TopologyError, UnknownNameError


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """An agent, and the queues it takes tasks from.

    Attributes:
        name: its name, unique in a topology.
        queues: names of the queues it listens to; their order does not matter.
        slots: how many tasks it runs at a time, or None for any number; 1, because a plain agent
            runs one task at a time.
    """

    name: str
    queues: tuple[str, ...]
    slots: int | None = 1

    def __post_init__(self) -> None:
        """Refuse an unnamed worker and a negative number of slots."""
        _require_name("a worker", self.name)
        for queue in self.queues:
            _require_name(f"a queue of worker {self.name!r}", queue)
        if self.slots is not None:
            _require_count(f"worker {self.name!r}: slots", self.slots, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A task that a controller enqueues.

    Attributes:
        name: its name, unique among its siblings.
        queue: the queue it is put in.
        after: names of the siblings that must have ended before.
        steps: the steps of a sub-pipeline, whose controller this task then is; empty for a
            plain step.
        needs: labels that its machine must have; the check itself does not look at them.
    """

    name: str
    queue: str
    after: tuple[str, ...] = ()
    steps: tuple[Step, ...] = ()
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse an unnamed step, and children that cannot be told apart or found."""
        _require_name("a step", self.name)
        _require_name(f"the queue of step {self.name!r}", self.queue)
        _check_siblings(f"step {self.name!r}", self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A pipeline: a controller that holds a slot until all its steps have ended.

    Attributes:
        name: its name, unique in a topology.
        queue: the queue its controller is put in; None where the controller runs outside of
            every worker and so holds no slot.
        steps: what it enqueues.
        instances: how many of it may run at the same time; 1, because a pipeline that is launched
            once runs once.
        worker: name of the worker its controller runs on already, or None.
    """

    name: str
    queue: str | None
    steps: tuple[Step, ...]
    instances: int = 1
    worker: str | None = None

    def __post_init__(self) -> None:
        """Refuse an unnamed pipeline, and steps that cannot be told apart or found."""
        _require_name("a pipeline", self.name)
        if self.queue is not None:
            _require_name(f"the queue of pipeline {self.name!r}", self.queue)
        _require_count(f"pipeline {self.name!r}: instances", self.instances, 1)
        _check_siblings(f"pipeline {self.name!r}", self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Everything that may run at the same time, and what it runs on.

    Attributes:
        workers: the workers that are alive.
        pipelines: the pipelines; all instances of all may be enqueued at the same time.
        queues: names of queues that exist, beyond those that a worker listens to.
        labels: what the machines of a queue are made for, by the queue's name.
    """

    workers: tuple[Worker, ...]
    pipelines: tuple[Pipeline, ...]
    queues: tuple[str, ...] = ()
    labels: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse two of a name, and a controller on a worker that is not there."""
        _require_unique("worker", (worker.name for worker in self.workers))
        _require_unique("pipeline", (pipeline.name for pipeline in self.pipelines))
        names = {worker.name for worker in self.workers}
        for pipeline in self.pipelines:
            if pipeline.worker is not None and pipeline.worker not in names:
                raise UnknownNameError("worker", pipeline.worker, names)


class Outcome(enum.Enum):
    """What is known of a topology."""

    SAFE = "safe"
    UNSAFE = "unsafe"


class ChainKind(enum.Enum):
    """Why a topology is refused.

    Attributes:
        DEADLOCK: controllers hold every slot that their steps wait for; there is a run that ends
            so.
        UNSERVED: a task waits in a queue that no worker serves.
        ORDER: steps wait for each other by ``after``.
        CAUTION: the rule for large topologies does not hold; whether a run deadlocks is not known.
    """

    DEADLOCK = "deadlock"
    UNSERVED = "unserved"
    ORDER = "order"
    CAUTION = "caution"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A controller that holds a slot.

    Attributes:
        task: path of names from the pipeline down ("train", "tune").
        worker: the worker whose slot it holds, or None where it holds none.
    """

    task: tuple[str, ...]
    worker: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """One reason for a refusal: what holds what, and what waits for it.

    Attributes:
        kind: what sort of reason it is.
        holds: the ancestors of what waits, from the pipeline down, with the slots they hold.
        waiting: path of the task that waits.
        queue: where it waits; "" for `ChainKind.ORDER`.
        listeners: names of the workers that serve that queue.
        blockers: all the controllers that hold the listeners' slots.
        text: the reason in words.
    """

    kind: ChainKind
    waiting: tuple[str, ...]
    text: str
    queue: str = ""
    holds: tuple[Hold, ...] = ()
    listeners: tuple[str, ...] = ()
    blockers: tuple[Hold, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether controllers and steps can deadlock.

    Attributes:
        outcome: SAFE is proven; UNSAFE is proven where *exact*, a precaution otherwise.
        exact: whether the outcome is what an exhaustive search would find.
        chains: the reasons, at least one where the outcome is UNSAFE.
    """

    outcome: Outcome
    exact: bool
    chains: tuple[Chain, ...] = ()

    @property
    def safe(self) -> bool:
        """Whether no sequence of events ends in a deadlock."""
        return self.outcome is Outcome.SAFE

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons in words."""
        return tuple(chain.text for chain in self.chains)


def _require_name(what: str, name: object) -> None:
    if not isinstance(name, str) or not name.strip():
        raise TopologyError(what, name, "a name")


def _require_count(what: str, count: int, least: int) -> None:
    if isinstance(count, bool) or count < least:
        raise TopologyError(what, count, f"a whole number from {least}")


def _require_unique(what: str, names: Iterable[Hashable]) -> None:
    seen: set[Hashable] = set()
    for name in names:
        if name in seen:
            raise TopologyError(what, name, f"a name that no other {what} has")
        seen.add(name)


def _check_siblings(owner: str, steps: tuple[Step, ...]) -> None:
    _require_unique(f"step of {owner}", (step.name for step in steps))
    names = {step.name for step in steps}
    for step in steps:
        for name in step.after:
            if name not in names:
                raise UnknownNameError(f"step of {owner}", name, names)
