"""Refusals in words: what holds what, and what waits for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mlops_ext.errors import nearest
from mlops_ext.queues.model import Model, Node, Placement
from mlops_ext.queues.topology import Chain, ChainKind, Hold

MAX_CHAINS = 8
"""Reasons of one kind that are told: more than that nobody reads."""

_NAMED = 4
"""Names that are listed before "and n others"."""


def explain_deadlock(model: Model, placements: Sequence[Placement]) -> tuple[Chain, ...]:
    """One chain for each step that waits for ever, in the deadlock *placements*."""
    held = _name_slots(model, placements)
    everyone = [hold for holds in held for hold in holds.values()]
    chains: dict[str, Chain] = {}
    for placement, holds in zip(placements, held, strict=True):
        for index in placement.holds:
            for child in model.nodes[index].children:
                node = model.nodes[child]
                if child in placement.holds or child in placement.ended or node.queue is None:
                    continue
                if not placement.ended.issuperset(node.after):
                    continue
                listeners = _listeners(model, node.queue)
                blockers = tuple(hold for hold in everyone if hold.worker in listeners)
                slots = _slots(model, node.queue)
                if slots is None or len(blockers) < slots:
                    continue
                chain = _deadlock_chain(model, node, holds, listeners, blockers)
                chains.setdefault(chain.text, chain)
                if len(chains) == MAX_CHAINS:
                    return tuple(chains.values())
    return tuple(chains.values())


def _deadlock_chain(
    model: Model,
    node: Node,
    holds: dict[int, Hold],
    listeners: tuple[str, ...],
    blockers: tuple[Hold, ...],
) -> Chain:
    ancestors = []
    parent = node.parent
    while parent is not None:
        ancestors.append(holds[parent])
        parent = model.nodes[parent].parent
    ancestors.reverse()
    queue = model.queues[node.queue] if node.queue is not None else ""
    links = [*(_hold_text(hold) for hold in ancestors), _wait_text(node, queue)]
    others = sorted({_owner(hold) for hold in blockers if hold not in ancestors})
    last = f"only {_listing(listeners)} {'listens' if len(listeners) == 1 else 'listen'}"
    if others:
        last += f", also held by {_listing(others)}"
    links.append(last)
    return Chain(
        kind=ChainKind.DEADLOCK,
        holds=tuple(ancestors),
        waiting=node.path,
        queue=queue,
        listeners=listeners,
        blockers=blockers,
        text=f"{node.path[0]}: {' → '.join(links)}",
    )


def explain_unserved(model: Model) -> tuple[Chain, ...]:
    """One chain for each queue that tasks are put in and that no worker serves."""
    served = {name for worker in model.topology.workers for name in worker.queues}
    existing = served.union(model.topology.queues)
    chains: dict[int, Chain] = {}
    for node in model.nodes:
        if node.queue is None or model.classes_of[node.queue] or node.queue in chains:
            continue
        name = model.queues[node.queue]
        if name in existing or not model.topology.queues:
            last = "no worker listens"
        else:
            last = "there is no such queue"
        near = nearest(name, existing - {name}) if name not in existing else None
        hint = f" (did you mean {near}?)" if near else ""
        chains[node.queue] = Chain(
            kind=ChainKind.UNSERVED,
            holds=(),
            waiting=node.path,
            queue=name,
            listeners=(),
            blockers=(),
            text=f"{node.path[0]}: {_wait_text(node, name)} → {last}{hint}",
        )
    return tuple(chains.values())


def explain_order(model: Model) -> tuple[Chain, ...]:
    """One chain for each controller whose steps wait for each other by ``after``."""
    chains = []
    for parent in model.nodes:
        cycle = _cycle(model, parent)
        if cycle:
            names = [f'"{model.nodes[index].path[-1]}"' for index in cycle]
            chains.append(
                Chain(
                    kind=ChainKind.ORDER,
                    holds=(),
                    waiting=model.nodes[cycle[0]].path,
                    queue="",
                    listeners=(),
                    blockers=(),
                    text=f"{'/'.join(parent.path)}: step "
                    + " waits for ".join([*names, names[0]])
                    + ", so none of them is ever enqueued",
                )
            )
    return tuple(chains[:MAX_CHAINS])


def _cycle(model: Model, parent: Node) -> list[int]:
    """Steps of *parent* that wait for each other, in the order in which each waits for the next."""
    waits = {child: set(model.nodes[child].after) for child in parent.children}
    followers: dict[int, list[int]] = {child: [] for child in waits}
    for child, before in waits.items():
        for each in before:
            followers[each].append(child)
    free = [child for child, before in waits.items() if not before]
    while free:
        done = free.pop()
        del waits[done]
        for child in followers[done]:
            waits[child].discard(done)
            if not waits[child]:
                free.append(child)
    if not waits:
        return []
    walk: list[int] = [min(waits)]
    while True:
        ahead = min(waits[walk[-1]])
        if ahead in walk:
            return walk[walk.index(ahead) :]
        walk.append(ahead)


def explain_caution(model: Model, nodes: Iterable[Node]) -> tuple[Chain, ...]:
    """One chain for each queue of *nodes* that waiting controllers could fill."""
    chains: dict[int, Chain] = {}
    for node in nodes:
        if node.queue is None or node.queue in chains:
            continue
        queue, slots = model.queues[node.queue], _slots(model, node.queue)
        what = "the only slot of its workers" if slots == 1 else f"all {slots} slots of its workers"
        chains[node.queue] = Chain(
            kind=ChainKind.CAUTION,
            holds=(),
            waiting=node.path,
            queue=queue,
            listeners=_listeners(model, node.queue),
            blockers=(),
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


def _slots(model: Model, queue: int) -> int | None:
    """Slots of *queue*'s workers, or None where one has no bound."""
    total = 0
    for at in model.classes_of[queue]:
        slots = model.classes[at].slots
        if slots is None:
            return None
        total += slots
    return total


def _name_slots(model: Model, placements: Sequence[Placement]) -> list[dict[int, Hold]]:
    """Per instance the controllers that hold, each with one worker of the class that took it."""
    free = [
        iter(
            [worker.name for worker in each.workers for _ in range(worker.slots or 0)]
            if each.slots is not None
            else []
        )
        for each in model.classes
    ]
    counted: dict[int, int] = {}
    named: list[dict[int, Hold]] = []
    for placement in placements:
        pipeline = model.topology.pipelines[placement.pipeline]
        counted[placement.pipeline] = number = counted.get(placement.pipeline, 0) + 1
        holds = {}
        for index, at in placement.holds.items():
            worker = None
            if at is not None:
                boundless = next(
                    (each.name for each in model.classes[at].workers if each.slots is None), None
                )
                worker = boundless or next(free[at])
            path = model.nodes[index].path
            if pipeline.instances > 1:
                path = (f"{path[0]} #{number}", *path[1:])
            holds[index] = Hold(task=path, worker=worker)
        named.append(holds)
    return named


def _hold_text(hold: Hold) -> str:
    who = "controller" if len(hold.task) == 1 else f'sub-pipeline "{hold.task[-1]}"'
    return f"{who} holds {hold.worker}" if hold.worker else f"{who} waits outside of the workers"


def _wait_text(node: Node, queue: str) -> str:
    if node.parent is None:
        return f"controller waits in {queue}"
    kind = "sub-pipeline" if node.children else "step"
    return f'{kind} "{node.path[-1]}" waits in {queue}'


def _owner(hold: Hold) -> str:
    return "/".join(hold.task)


def _listing(names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    if len(names) > _NAMED + 1:
        return f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} others"
    return f"{', '.join(names[:-1])} and {names[-1]}"
