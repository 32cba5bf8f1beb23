"""Refusals in words: what holds what, and what waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from graphlib import CycleError, TopologicalSorter

from mlops_ext.errors import nearest
from mlops_ext.queues.model import Model, Node, Placement
from mlops_ext.queues.topology import Chain, ChainKind, Hold

MAX_CHAINS = 8  # reasons of one kind that are told: more than that nobody reads

# Names that are listed before "and n others".
_NAMED = 4


def explain_deadlock(model: Model, placements: Sequence[Placement]) -> tuple[Chain, ...]:
    """One chain for each step that waits forever, in the deadlock *placements*."""
    held = _holds(model, placements)
    everyone = [hold for holds in held for hold in holds.values()]
    chains: dict[str, Chain] = {}
    for placement, holds in zip(placements, held, strict=True):
        for index in placement.waiting:
            chain = _deadlock_chain(model, model.nodes[index], holds, everyone)
            chains.setdefault(chain.text, chain)
            if len(chains) == MAX_CHAINS:
                return tuple(chains.values())
    return tuple(chains.values())


def _deadlock_chain(
    model: Model, node: Node, holds: dict[int, Hold], everyone: list[Hold]
) -> Chain:
    ancestors: list[Hold] = []
    parent = node.parent
    while parent is not None:
        ancestors.insert(0, holds[parent])
        parent = model.nodes[parent].parent
    listeners = _listeners(model, node.queue)
    there = set(listeners)
    blockers = tuple(hold for hold in everyone if hold.worker in there)
    others = sorted({"/".join(hold.task) for hold in blockers if hold not in ancestors})
    last = f"only {listing(listeners)} {'listens' if len(listeners) == 1 else 'listen'}"
    if others:
        last += f", also held by {listing(others)}"
    queue = model.queues[node.queue]
    return Chain(
        kind=ChainKind.DEADLOCK,
        holds=tuple(ancestors),
        waiting=node.path,
        queue=queue,
        listeners=listeners,
        blockers=blockers,
        text=f"{node.path[0]}: "
        + " → ".join([*map(_hold_text, ancestors), _wait_text(node, queue), last]),
    )


def explain_unserved(model: Model) -> tuple[Chain, ...]:
    """One chain for each queue that tasks are put in and that no worker serves."""
    unserved: dict[int, Node] = {}
    for node in model.nodes:
        if not model.classes_of[node.queue]:
            unserved.setdefault(node.queue, node)
    if not unserved:
        return ()
    served = {name for worker in model.topology.workers for name in worker.queues}
    existing = served.union(model.topology.queues)
    chains = []
    for node in unserved.values():
        name = model.queues[node.queue]
        known = name in existing or not model.topology.queues
        last = "no worker listens" if known else "there is no such queue"
        near = nearest(name, existing - {name}) if name not in existing else None
        hint = f" (did you mean {near}?)" if near else ""
        text = f"{node.path[0]}: {_wait_text(node, name)} → {last}{hint}"
        chains.append(Chain(kind=ChainKind.UNSERVED, waiting=node.path, queue=name, text=text))
    return tuple(chains)


def explain_order(model: Model) -> tuple[Chain, ...]:
    """One chain for each controller whose steps wait for each other by ``after``."""
    chains = []
    for parent in model.nodes:
        if not any(model.nodes[child].after for child in parent.children):
            continue
        try:
            TopologicalSorter({c: model.nodes[c].after for c in parent.children}).prepare()
        except CycleError as error:
            cycle = error.args[1][:0:-1]  # each waits for the next
            first = cycle.index(min(cycle))
            order = (*cycle[first:], *cycle[: first + 1])
            names = [f'"{model.nodes[at].path[-1]}"' for at in order]
            chains.append(
                Chain(
                    kind=ChainKind.ORDER,
                    waiting=model.nodes[cycle[first]].path,
                    text=f"{'/'.join(parent.path)}: step {' waits for '.join(names)},"
                    " so none of them is ever enqueued",
                )
            )
    return tuple(chains[:MAX_CHAINS])


def explain_caution(model: Model, nodes: Iterable[Node]) -> tuple[Chain, ...]:
    """One chain for each queue of *nodes* that waiting controllers could fill."""
    chains: dict[int, Chain] = {}
    for node in nodes:
        if node.queue in chains:
            continue
        queue = model.queues[node.queue]
        slots = sum(model.classes[at].slots or 0 for at in model.classes_of[node.queue])
        what = "the only slot of its workers" if slots == 1 else f"all {slots} slots of its workers"
        chains[node.queue] = Chain(
            kind=ChainKind.CAUTION,
            waiting=node.path,
            queue=queue,
            listeners=_listeners(model, node.queue),
            text=f"being cautious: {node.path[0]}: {_wait_text(node, queue)} → {what}"
            " could be held by controllers that wait; whether a run comes to that was not searched",
        )
        if len(chains) == MAX_CHAINS:
            break
    return tuple(chains.values())


def _listeners(model: Model, queue: int) -> tuple[str, ...]:
    return tuple(
        worker.name for at in model.classes_of[queue] for worker in model.classes[at].workers
    )


def _holds(model: Model, placements: Sequence[Placement]) -> list[dict[int, Hold]]:
    """Per instance the controllers that hold, an instance of several with its number."""
    counted: Counter[int] = Counter()
    found: list[dict[int, Hold]] = []
    for placement in placements:
        counted[placement.pipeline] += 1
        holds = {}
        for index, worker in placement.holds.items():
            first, *others = model.nodes[index].path
            if model.counts[placement.pipeline] > 1:
                first = f"{first} #{counted[placement.pipeline]}"
            holds[index] = Hold(task=(first, *others), worker=worker)
        found.append(holds)
    return found


def _hold_text(hold: Hold) -> str:
    who = "controller" if len(hold.task) == 1 else f'sub-pipeline "{hold.task[-1]}"'
    return f"{who} holds {hold.worker}" if hold.worker else f"{who} waits outside of the workers"


def _wait_text(node: Node, queue: str) -> str:
    if node.parent is None:
        return f"controller waits in {queue}"
    kind = "sub-pipeline" if node.children else "step"
    return f'{kind} "{node.path[-1]}" waits in {queue}'


def listing(names: Sequence[str]) -> str:
    """*names* in a sentence: a, b and c; of many the first, and how many others."""
    if len(names) > _NAMED + 1:
        names = [*names[:_NAMED], f"{len(names) - _NAMED} others"]
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
