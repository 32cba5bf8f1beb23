"""The bounded rule: which controllers could be among those that are stuck, by maximum flow.

In a state where nothing moves, let H be the controllers that hold slots. A controller of H whose
controllers among its steps are all outside of H has a step that waits, and every slot that serves
this step's queue is held by H. So as long as H is drawn from a set S, and S cannot fill the
queues of any step of a controller whose own sub-pipelines are outside of S, that controller is
not in H and leaves S. Where S becomes empty nothing can be stuck. For N pipelines of d nested
controllers in one queue this asks for N(d-1)+1 slots.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from mlops_ext.queues.model import Model, Node, Placement

Fill = dict[tuple[int, int], int]
"""(queue of the controllers, number of the worker class) → how many of them hold slots there."""


@dataclass(frozen=True, slots=True)
class Offer:
    """The controllers that could hold slots, per queue, and what that means for the workers.

    Attributes:
        counts: per queue, how many controllers are put in it.
    """

    model: Model
    counts: Mapping[int, int]
    _known: dict[int, tuple[list[int], bool]] = field(default_factory=dict)

    def sources(self, at: int) -> list[int]:
        """The queues that bring controllers to class *at*, those with the fewest classes first."""
        return self._look(at)[0]

    def could_hold_all(self, at: int) -> bool:
        """Whether enough controllers come to class *at* for all of its slots."""
        return self._look(at)[1]

    def _look(self, at: int) -> tuple[list[int], bool]:
        known = self._known.get(at)
        if known is None:
            each, counts, classes_of = self.model.classes[at], self.counts, self.model.classes_of
            sources = [source for source in each.queues if source in counts]
            sources.sort(key=lambda source: (len(classes_of[source]), source))
            enough = each.slots is not None and sum(counts[s] for s in sources) >= each.slots
            known = self._known[at] = sources, enough
        return known


def possibly_stuck(model: Model) -> frozenset[int]:
    """Numbers of the controllers that could be stuck; where it is empty, nothing deadlocks.

    Expects every queue to be served and no steps that wait for each other. Never leaves out a
    controller that can be stuck; may name one that cannot.
    """
    stuck = {node.index for node in model.nodes if node.children}
    offer = _offer(model, stuck)
    could_fill: dict[int, bool] = {}
    undecided = sorted(stuck, reverse=True)
    while True:
        freed = [
            index
            for index in undecided
            if not _can_wait(model, model.nodes[index], stuck, offer, could_fill)
        ]
        if not freed:
            return frozenset(stuck)
        stuck.difference_update(freed)
        undecided = [index for index in undecided if index in stuck]
        offer = _offer(model, stuck)
        # A queue that could not be filled stays so; the others are asked again.
        could_fill = {queue: False for queue, could in could_fill.items() if not could}


def _offer(model: Model, controllers: Iterable[int]) -> Offer:
    """What all instances of *controllers* could hold."""
    counts: dict[int, int] = {}
    for index in controllers:
        node = model.nodes[index]
        if node.queue is not None:
            counts[node.queue] = counts.get(node.queue, 0) + model.instances(node)
    return Offer(model, counts)


def fillable(model: Model, stuck: frozenset[int]) -> Iterator[Node]:
    """The steps of *stuck* controllers whose queues *stuck* controllers could fill."""
    offer = _offer(model, stuck)
    known: dict[int, bool] = {}
    for index in sorted(stuck):
        for child in model.nodes[index].children:
            queue = model.nodes[child].queue
            if queue is not None:
                if queue not in known:
                    known[queue] = fill_queue(queue, offer) is not None
                if known[queue]:
                    yield model.nodes[child]


def fills_at_once(model: Model, stuck: frozenset[int]) -> list[Placement] | None:
    """A deadlock of the plainest kind, or None where there is none of that kind.

    Pipelines whose first steps all go to one queue, and whose controllers fill that queue.
    """
    first: defaultdict[int, set[int]] = defaultdict(set)
    for root in model.roots:
        for child in model.nodes[root].children:
            node = model.nodes[child]
            if root in stuck and node.queue is not None and not node.after:
                first[node.queue].add(root)
    for queue, roots in sorted(first.items()):
        fill = fill_queue(queue, _offer(model, roots))
        if fill is not None:
            return _place(model, sorted(roots), fill)
    return None


def _place(model: Model, roots: list[int], fill: Fill) -> list[Placement]:
    """Instances of *roots* that take the slots of *fill*."""
    instances: defaultdict[int, list[int]] = defaultdict(list)
    for root in roots:
        node = model.nodes[root]
        if node.queue is not None:
            instances[node.queue] += [root] * model.instances(node)
    return [
        Placement(pipeline=model.nodes[root].pipeline, holds={root: at}, ended=frozenset())
        for (source, at), count in fill.items()
        for root in (instances[source].pop() for _ in range(count))
    ]


def _can_wait(
    model: Model,
    node: Node,
    stuck: set[int],
    offer: Offer,
    could_fill: dict[int, bool],
) -> bool:
    """Whether a step of the controller *node* could wait for ever."""
    for child in node.children:
        if child in stuck:
            return True
        queue = model.nodes[child].queue
        if queue is None:
            continue
        if queue not in could_fill:
            could_fill[queue] = fill_queue(queue, offer) is not None
        if could_fill[queue]:
            return True
    return False


def fill_queue(queue: int, offer: Offer) -> Fill | None:
    """How the controllers of *offer* fill every slot of *queue*, or None if they cannot.

    A maximum flow from controllers to slots by shortest augmenting paths (Edmonds and Karp, 1972),
    the paths of one edge first: they nearly always do.
    """
    demand: dict[int, int] = {}
    for at in offer.model.classes_of[queue]:
        slots = offer.model.classes[at].slots
        if slots is None or not offer.could_hold_all(at):
            return None
        demand[at] = slots
    if sum(offer.counts.values()) < sum(demand.values()):
        return None
    left = dict(offer.counts)
    fill: Fill = {}
    for at in sorted(demand, key=lambda each: len(offer.sources(each))):
        missing = demand[at]
        for source in offer.sources(at):
            taken = min(missing, left[source])
            if taken:
                fill[source, at] = taken
                left[source] -= taken
                missing -= taken
                if not missing:
                    break
        while missing:
            moved = _make_room(at, missing, offer, left, fill)
            if not moved:
                return None
            missing -= moved
    return {each: count for each, count in fill.items() if count}


def _make_room(at: int, missing: int, offer: Offer, left: dict[int, int], fill: Fill) -> int:
    """Put up to *missing* more controllers on class *at*, moving others to other classes of theirs.

    Changes *left* and *fill*; returns how many were put there, 0 if none can be.
    """
    giver = {at: -1}  # class → the source that would leave it for the class before
    taker: dict[int, int] = {}  # source → the class it would be put on
    for current in (reached := [at]):  # grows below
        for source in offer.sources(current):
            if source in taker:
                continue
            taker[source] = current
            if left[source]:
                return _move(source, min(left[source], missing), giver, taker, left, fill)
            for other in offer.model.classes_of[source]:
                if other not in giver and fill.get((source, other)):
                    giver[other] = source
                    reached.append(other)
    return 0


def _move(
    source: int,
    count: int,
    giver: Mapping[int, int],
    taker: Mapping[int, int],
    left: dict[int, int],
    fill: Fill,
) -> int:
    """Move as many of *count* controllers as the path that ends at *source* carries."""
    path = [source]
    while (before := giver[taker[path[-1]]]) >= 0:
        count = min(count, fill[before, taker[path[-1]]])
        path.append(before)
    left[source] -= count
    for each in path:
        at = taker[each]
        fill[each, at] = fill.get((each, at), 0) + count
        if giver[at] >= 0:
            fill[giver[at], at] -= count
    return count
