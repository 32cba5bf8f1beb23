"""Changes that make an unsafe topology safe, each checked before it is proposed."""

from __future__ import annotations

import dataclasses
import enum
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from clearml_ext.topology.labels import all_steps, fits, is_for_controllers, pipeline_of
from mlops_ext.queues.check import ChainKind, Pipeline, Step, Topology, Verdict, Worker, check
from mlops_ext.queues.explain import listing

# Changed topologies that are checked at most; each takes milliseconds where it is small.
_CHECKS = 60
# The same where a check takes a good part of a second.
_CHECKS_OF_LARGE = 6
# Moves that each of these checks may try: a fraction of a second.
_MOVES = 20_000
# Workers and steps from which a topology counts as large here.
_LARGE = 400
# New agents that are proposed at most; who needs more had better move the controllers.
_NEW_AGENTS = 8


class FixKind(enum.Enum):
    """What a fix changes, in the order in which they are tried."""

    CONTROLLER_QUEUE = "controller queue"
    STEP_QUEUE = "step queue"
    LOCAL_CONTROLLER = "local controller"
    NEW_AGENT = "new agent"
    SERVICES_AGENT = "services agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fix:
    """A change after which the topology is safe.

    Attributes:
        kind: what it changes.
        text: what to do, in words, with the command if there is one.
        why: why this one was chosen of those of its kind.
        topology: the topology after it.
        queues: old queue → new queue, of the steps that it moves.
        controller_queue: the controllers' new queue; None where they run locally or stay.
    """

    kind: FixKind
    text: str
    why: str
    topology: Topology
    queues: tuple[tuple[str, str], ...] = ()
    controller_queue: str | None = None


def propose(topology: Topology, verdict: Verdict, services: str = "services") -> Iterator[Fix]:
    """Propose fixes for *topology*, refused with *verdict*: gentlest first, each proven to help.

    Controllers are sent to the queue *services* or to one made for them, never to any other: what
    is free may be a machine that others need. Steps stay on machines of their kind.
    """
    if verdict.safe or all(chain.kind is ChainKind.ORDER for chain in verdict.chains):
        return
    size = len(topology.workers) + sum(len(each.steps) for each in topology.pipelines)
    left = _CHECKS_OF_LARGE if size > _LARGE else _CHECKS
    found: set[FixKind] = set()
    for fix in _candidates(topology, verdict, services, most=left // 3):
        if fix.kind in found:
            continue
        if not left:
            return
        left -= 1
        if check(fix.topology, moves=_MOVES).safe:
            found.add(fix.kind)
            yield fix


def _candidates(topology: Topology, verdict: Verdict, services: str, *, most: int) -> Iterator[Fix]:
    """Changes that may help, of queues *most* of a kind: others come after them."""
    involved = _involved(verdict)
    waiting = list(dict.fromkeys(chain.queue for chain in verdict.chains if chain.queue))
    if len(topology.workers) > _LARGE:
        yield from _new_agents(topology, waiting)
        return
    yield from islice(_move_controllers(topology, involved, services), most)
    yield from islice(_move_steps(topology, involved, waiting, services), most)
    yield _replace(
        topology,
        involved,
        FixKind.LOCAL_CONTROLLER,
        f"run the controller of {listing(involved)} outside of the agents: start_locally()",
        "there it holds none of them",
    )
    yield from _new_agents(topology, waiting)
    yield from _services_agent(topology, involved, services)


def _involved(verdict: Verdict) -> list[str]:
    """Names of the pipelines that a refusal is about."""
    names: dict[str, None] = {}
    for chain in verdict.chains:
        names[chain.waiting[0]] = None
        for hold in chain.blockers:
            names[pipeline_of(hold.task)] = None
    return list(names)


def _known_queues(topology: Topology) -> list[str]:
    """Queues with a worker, the one named services first, then those with the most slots."""
    slots: dict[str, float] = {}
    for worker in topology.workers:
        for queue in worker.queues:
            more = float("inf") if worker.slots is None else worker.slots
            slots[queue] = slots.get(queue, 0) + more
    return sorted(slots, key=lambda queue: (queue != "services", -slots[queue], queue))


def separate(topology: Topology, name: str, services: str = "services") -> Iterator[Fix]:
    """Propose a queue for the controller of pipeline *name* that none of its steps uses."""
    for fix in (
        *_move_controllers(topology, [name], services),
        *_services_agent(topology, [name], services),
    ):
        if check(fix.topology, moves=_MOVES).safe:
            yield fix
            return


def _move_controllers(topology: Topology, involved: list[str], services: str) -> Iterator[Fix]:
    taken = {step.queue for each in topology.pipelines for step in all_steps(each.steps)}
    for queue in _known_queues(topology):
        if queue not in taken and is_for_controllers(queue, topology.labels, services):
            yield _replace(
                topology,
                involved,
                FixKind.CONTROLLER_QUEUE,
                f"put the controller of {listing(involved)} in queue {queue}",
                "it is for controllers, and no step goes there",
                controller=queue,
            )


def _move_steps(
    topology: Topology, involved: list[str], waiting: list[str], services: str
) -> Iterator[Fix]:
    labels, controllers = topology.labels, {each.queue for each in topology.pipelines}
    steps = [each for pipe in topology.pipelines if pipe.name in involved for each in pipe.steps]
    for old in waiting:
        moved = [step for step in all_steps(steps) if step.queue == old]
        for new in _known_queues(topology):
            if new in {old, *controllers} or is_for_controllers(new, labels, services):
                continue
            if all(fits(step, new, labels) for step in moved):
                needed = ", ".join(sorted({need for step in moved for need in step.needs}))
                why = f"it has what they need: {needed}"
                why = why if needed else "its machines are of the same kind"
                text = f"put the steps that go to {old} in queue {new}"
                kind = FixKind.STEP_QUEUE
                yield _replace(topology, involved, kind, text, why, moved=(old, new))


def _moved(steps: tuple[Step, ...], old: str, new: str) -> tuple[Step, ...]:
    return tuple(
        dataclasses.replace(
            step,
            queue=new if step.queue == old else step.queue,
            steps=_moved(step.steps, old, new),
        )
        for step in steps
    )


def _new_agents(topology: Topology, waiting: list[str]) -> Iterator[Fix]:
    unserved = [queue for queue in waiting if queue not in _known_queues(topology)]
    for count in range(1, _NEW_AGENTS + 1):
        for queues in [unserved] if unserved else [[queue] for queue in waiting]:
            commands = "; ".join(map(agent_command, queues))
            workers = [
                Worker(name=f"new agent {at} on {queue}", queues=(queue,))
                for queue in queues
                for at in range(1, count + 1)
            ]
            words = "another agent" if count == 1 else f"{count} more agents"
            yield Fix(
                kind=FixKind.NEW_AGENT,
                text=f"start {words} for {listing(queues)}: {commands}",
                why="no change of queues would do, or none is wanted",
                topology=dataclasses.replace(topology, workers=(*topology.workers, *workers)),
            )


def _services_agent(topology: Topology, involved: list[str], services: str) -> Iterator[Fix]:
    """Propose a services-mode agent for controllers: on the open-source server it has no bound."""
    taken = {step.queue for each in topology.pipelines for step in all_steps(each.steps)}
    names = (services, "controllers", *(f"controllers-{at}" for at in range(2, len(taken) + 3)))
    queue = next(name for name in names if name not in taken)
    agent = Worker(name="new services agent", queues=(queue,), slots=None)
    text = f"put the controller of {listing(involved)} in queue {queue}"
    yield _replace(
        dataclasses.replace(topology, workers=(*topology.workers, agent)),
        involved,
        FixKind.SERVICES_AGENT,
        f"{text}, served by {services_command(queue)}",
        "such an agent takes any number of controllers",
        controller=queue,
    )


def services_command(queue: str) -> str:
    """The command that starts an agent for any number of controllers, in *queue*."""
    options = "--create-queue --docker --detached"
    return f"clearml-agent daemon --services-mode --queue {_quoted(queue)} {options}"


def _quoted(queue: str) -> str:
    return queue if re.fullmatch(r"[\w.:/-]+", queue) else shlex.quote(queue)


def agent_command(queue: str) -> str:
    """The command that starts an agent for one task at a time, in *queue*."""
    return f"clearml-agent daemon --queue {_quoted(queue)} --create-queue --detached"


def _replace(  # what a fix changes
    topology: Topology,
    involved: list[str],
    kind: FixKind,
    text: str,
    why: str,
    *,
    controller: str | None = None,
    moved: tuple[str, str] | None = None,
) -> Fix:
    """The fix that sends the pipelines *involved* elsewhere, controllers or *moved* steps."""

    def change(each: Pipeline) -> Pipeline:
        if each.name not in involved:
            return each
        if moved is not None:
            return dataclasses.replace(each, steps=_moved(each.steps, *moved))
        worker = each.worker if controller is not None else None
        return dataclasses.replace(each, queue=controller, worker=worker)

    pipelines = tuple(change(each) for each in topology.pipelines)
    return Fix(
        kind=kind,
        text=text,
        why=why,
        topology=dataclasses.replace(topology, pipelines=pipelines),
        queues=(moved,) if moved else (),
        controller_queue=controller,
    )
