"""The bounded rule: which controllers could be among those that are stuck, by maximum flow.

In a state where nothing moves, let H be the controllers that hold slots. A controller of H whose
controllers among its steps are all outside of H has a step that waits, and every slot that serves
this step's queue is held by H. So as long as H is drawn from a set S, and S cannot fill the
queues of any step of a controller whose own sub-pipelines are outside of S, that controller is
not in H and leaves S. Where S becomes empty nothing can be stuck. For N pipelines of d nested
controllers in one queue this asks for N(d-1)+1 slots.

Sub-pipelines that come one after another never hold at the same time: they count as one
controller, which may be in any of their queues.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from graphlib import TopologicalSorter

from mlops_ext.queues.model import Model, Node

# The queues in one of which a controller is at a time; it is put in no other.
Source = frozenset[int]

# (source of the controllers, number of the worker class) → how many of them hold slots there.
Fill = dict[tuple[Source, int], int]

# Sub-pipelines of one controller up to which their order is looked at.
_MOST_IN_ORDER = 64


class Offer:
    """The controllers that could hold slots, and what that means for the workers.

    Args:
        model: the topology.
        counts: per source, how many controllers it stands for.
    """

    def __init__(self, model: Model, counts: Mapping[Source, int]) -> None:
        self.model, self.counts = model, counts
        self.reach = {
            source: sorted({at for queue in source for at in model.classes_of[queue]})
            for source in counts
        }
        self._by_queue: dict[int, list[Source]] = {}
        for source in counts:
            for queue in source:
                self._by_queue.setdefault(queue, []).append(source)
        self._known: dict[int, list[Source]] = {}
        self.most: dict[int, int] = {}  # class → how many controllers come to it

    def sources(self, at: int) -> list[Source]:
        """The sources that bring controllers to class *at*, those with the fewest classes first."""
        if at not in self._known:
            queues = self.model.classes[at].queues
            found = {source for queue in queues for source in self._by_queue.get(queue, ())}
            order = sorted(found, key=lambda source: (len(self.reach[source]), min(source)))
            self._known[at], self.most[at] = order, sum(self.counts[each] for each in order)
        return self._known[at]


def possibly_stuck(model: Model) -> tuple[frozenset[int], Callable[[], Iterator[Node]]]:
    """Numbers of the controllers that could be stuck, and their steps whose queues they could fill.

    Where there are none, nothing deadlocks. Expects every queue to be served and no steps that
    wait for each other. Never leaves out a controller that can be stuck; may name one that cannot.
    """
    stuck = {node.index for node in model.nodes if node.children}
    could_fill: dict[int, bool] = {}
    while True:
        offer = _offer(model, stuck)
        # A queue that could not be filled stays so; the others are asked again.
        could_fill = {queue: False for queue, could in could_fill.items() if not could}

        def fills(queue: int, offer: Offer = offer, known: dict[int, bool] = could_fill) -> bool:
            if queue not in known:
                known[queue] = fill_queue(queue, offer) is not None
            return known[queue]

        freed = [
            index
            for index in sorted(stuck, reverse=True)
            if not any(
                child in stuck or fills(model.nodes[child].queue)
                for child in model.nodes[index].children
            )
        ]
        if not freed:
            break
        stuck.difference_update(freed)
    steps = [model.nodes[child] for index in sorted(stuck) for child in model.nodes[index].children]
    return frozenset(stuck), lambda: (step for step in steps if fills(step.queue))


def _offer(model: Model, stuck: Iterable[int]) -> Offer:
    """What all instances of the controllers *stuck* could hold at one moment."""
    counts: Counter[Source] = Counter()
    sources: dict[int, list[Source]] = {}
    for index in sorted(stuck, reverse=True):  # children come before their parents
        node = model.nodes[index]
        found = [frozenset((node.queue,))]
        for chain in _chains(model, [each for each in node.children if each in sources]):
            parts = (sources[each] for each in chain)
            levels = itertools.zip_longest(*parts, fillvalue=frozenset[int]())
            found += [frozenset[int]().union(*level) for level in levels]
        sources[index] = found
        if node.parent is None:
            for source in found:
                counts[source] += model.counts[node.pipeline]
    return Offer(model, counts)


def _chains(model: Model, siblings: list[int]) -> list[list[int]]:
    """*siblings* in groups of which no two run at the same time, as one comes after the other."""
    if not 1 < len(siblings) <= _MOST_IN_ORDER:
        return [[each] for each in siblings]
    before = ancestors(model, siblings)
    chains: list[list[int]] = []
    for each in sorted(siblings, key=lambda index: len(before[index])):
        chain = next((chain for chain in chains if chain[-1] in before[each]), None)
        if chain is None:
            chains.append(chain := [])
        chain.append(each)
    return chains


def ancestors(model: Model, wanted: Iterable[int]) -> dict[int, frozenset[int]]:
    """For each of the siblings *wanted*, those of them that it comes after, however far."""
    wanted = frozenset(wanted)
    parent = model.nodes[next(iter(wanted))].parent if wanted else None
    siblings = () if parent is None else model.nodes[parent].children
    found: dict[int, frozenset[int]] = {}
    order = TopologicalSorter({each: model.nodes[each].after for each in siblings})
    for index in order.static_order():
        after = model.nodes[index].after
        found[index] = wanted.intersection(after).union(*(found[each] for each in after))
    return {each: found[each] for each in wanted}


def fill_queue(queue: int, offer: Offer) -> Fill | None:
    """How the controllers of *offer* fill every slot of *queue*, or None if they cannot.

    A maximum flow from controllers to slots by shortest augmenting paths (Edmonds and Karp, 1972).
    """
    demand: dict[int, int] = {}
    for at in offer.model.classes_of[queue]:
        slots = offer.model.classes[at].slots
        if slots is None or not offer.sources(at) or offer.most[at] < slots:
            return None
        demand[at] = slots
    if sum(offer.counts.values()) < sum(demand.values()):
        return None
    left, fill = dict(offer.counts), Counter[tuple[Source, int]]()
    for at in sorted(demand, key=lambda each: len(offer.sources(each))):
        missing = demand[at]
        for source in offer.sources(at):  # the paths of one edge, which nearly always do
            if taken := min(missing, left[source]):
                fill[source, at] = taken
                left[source] -= taken
                missing -= taken
                if not missing:
                    break
        while missing:
            placed = _place(at, missing, offer, left, fill)
            if not placed:
                return None
            missing -= placed
    return +fill


def _place(
    at: int, missing: int, offer: Offer, left: dict[Source, int], fill: Counter[tuple[Source, int]]
) -> int:
    """Put up to *missing* more controllers on class *at*, moving others to other classes of theirs.

    Changes *left* and *fill*; returns how many were put there, 0 if none can be.
    """
    # Class → who would leave it, and for which class.
    leaves: dict[int, tuple[Source, int] | None] = {at: None}
    seen: set[Source] = set()
    for current in (reached := [at]):  # grows below
        for source in offer.sources(current):
            if source in seen:
                continue
            seen.add(source)
            if left[source]:
                return _move(source, current, missing, leaves, left, fill)
            for other in offer.reach[source]:
                if other not in leaves and fill[source, other]:
                    leaves[other] = source, current
                    reached.append(other)
    return 0


def _move(  # the state of a flow
    source: Source,
    target: int,
    count: int,
    leaves: Mapping[int, tuple[Source, int] | None],
    left: dict[Source, int],
    fill: Counter[tuple[Source, int]],
) -> int:
    """Put up to *count* controllers of *source* on class *target*, and pass others on."""
    moves: list[tuple[Source, int, int | None]] = [(source, target, None)]
    count = min(count, left[source])
    while (step := leaves[target]) is not None:
        count = min(count, fill[step[0], target])
        moves.append((*step, target))
        target = step[1]
    left[source] -= count
    for each, gained, lost in moves:
        fill[each, gained] += count
        if lost is not None:
            fill[each, lost] -= count
    return count
