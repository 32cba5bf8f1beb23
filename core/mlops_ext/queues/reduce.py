"""What matters for the search: fewer tasks, and one pipeline for all that are alike.

- A task whose queue can never be full, and that is never stuck itself, can end as soon as it is
  enqueued. Nothing waits for it forever, so it is left out.
- A step that nothing comes after only ever waits. Of two in one queue, the one that is enqueued
  no later than the other says all.
- Pipelines that look the same by then are instances of one, and workers that serve the same of
  the queues that are left are of one class.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

from mlops_ext.queues.bounds import ancestors
from mlops_ext.queues.model import Model, Node, Placement, WorkerClass, classify
from mlops_ext.queues.topology import Worker

# The steps of a controller: queue, whether it may be stuck, its own steps, and the places of those
# that it comes after.
Form = tuple[tuple[int, bool, "Form", tuple[int, ...]], ...]

# One instance in the reduced model: pipeline, controller → class, tasks that wait forever.
Holding = tuple[int, dict[int, int], list[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reduced:
    """What is left of a model.

    Attributes:
        model: what is left, as a model of its own.
        stuck: numbers of its controllers that could be stuck.
        whole: the model before.
        originals: per task, the numbers that it stands for in *whole*, one a pipeline.
    """

    model: Model
    stuck: frozenset[int]
    whole: Model
    originals: list[list[int]]

    def restore(self, found: list[Holding]) -> list[Placement]:
        """What *found* is in the model before."""
        nodes, roots = self.whole.nodes, self.model.roots
        slots = [_slots(each) for each in self.model.classes]
        # Of which of the pipelines that look alike an instance is, is all one.
        members = [iter(self._members(root)) for root in roots]
        placements = []
        for pipeline, holds, waiting in found:
            member = next(members[pipeline])
            first = self.originals[roots[pipeline]][member]
            placements.append(
                Placement(
                    pipeline=nodes[first].pipeline,
                    holds={
                        self.originals[index][member]: next(slots[at])
                        for index, at in holds.items()
                    },
                    waiting=tuple(self.originals[index][member] for index in waiting),
                )
            )
        return placements

    def _members(self, root: int) -> list[int]:
        """For each instance of a pipeline, which of those that it stands for."""
        counts = [self.whole.counts[self.whole.nodes[i].pipeline] for i in self.originals[root]]
        return [member for member, count in enumerate(counts) for _ in range(count)]


def _slots(each: WorkerClass) -> Iterator[str | None]:
    """The names of the workers of a class, each as often as it has slots; None outside of them."""
    if each.slots is None:
        boundless = (worker.name for worker in each.workers if worker.slots is None)
        return itertools.repeat(next(boundless, None))
    return (worker.name for worker in each.workers for _ in range(worker.slots or 0))


def reduce_model(model: Model, stuck: frozenset[int], blocked: frozenset[int]) -> Reduced:
    """What is left of *model* for a search.

    Args:
        model: the topology; every queue served, no steps that wait for each other.
        stuck: numbers of the controllers that could be stuck.
        blocked: numbers of the queues that they could fill.
    """
    forms: dict[int, Form] = {}
    left: dict[int, list[int]] = {}
    for index in sorted(stuck, reverse=True):  # children come before their parents
        left[index], forms[index] = _form(model, model.nodes[index], forms, blocked)
    alike: defaultdict[tuple[int, Form], list[int]] = defaultdict(list)
    for root in model.roots:
        if root in stuck:
            alike[model.nodes[root].queue, forms[root]].append(root)
    nodes: list[Node] = []
    originals: list[list[int]] = []
    roots = []
    for pipeline, members in enumerate(alike.values()):
        roots.append(len(nodes))
        pending: list[tuple[int | None, list[int]]] = [(None, members)]
        for parent, group in pending:  # grows below
            first = model.nodes[group[0]]
            node = replace(first, index=len(nodes), pipeline=pipeline, parent=parent, children=())
            nodes.append(node)
            originals.append(group)
            rows = zip(*(left.get(each, ()) for each in group), strict=True)
            pending += [(node.index, list(row)) for row in rows]
    _join(nodes, originals, forms)
    used = {node.queue for node in nodes}
    workers: defaultdict[frozenset[int], list[Worker]] = defaultdict(list)
    for each in model.classes:
        if served := each.queues & used:
            workers[served] += each.workers
    return Reduced(
        model=replace(
            model,
            nodes=nodes,
            roots=roots,
            counts=[sum(model.counts[model.nodes[r].pipeline] for r in m) for m in alike.values()],
            **classify(workers, len(model.queues)),
        ),
        stuck=frozenset(node.index for node in nodes if originals[node.index][0] in stuck),
        whole=model,
        originals=originals,
    )


def _join(nodes: list[Node], originals: list[list[int]], forms: dict[int, Form]) -> None:
    """Tell *nodes* of their children, and of what they come after."""
    children: defaultdict[int, list[Node]] = defaultdict(list)
    for node in nodes:
        if node.parent is not None:
            children[node.parent].append(node)
    for parent, made in children.items():
        nodes[parent].children = tuple(each.index for each in made)
        steps = forms[originals[parent][0]]
        for node, (_, _, _, after) in zip(made, steps, strict=True):
            node.after = tuple(made[at].index for at in after)
            node.precedes = any(made.index(node) in step[3] for step in steps)


def _form(
    model: Model, parent: Node, forms: dict[int, Form], blocked: frozenset[int]
) -> tuple[list[int], Form]:
    """The numbers of what is left of the steps of *parent*, and their form in the same order."""
    left = [c for c in parent.children if c in forms or model.nodes[c].queue in blocked]
    before = ancestors(model, left)
    preceding = frozenset[int]().union(*before.values())

    def rank(child: int) -> tuple[int, bool, Form, int]:
        return model.nodes[child].queue, child in forms, forms.get(child, ()), len(before[child])

    chosen: list[int] = []
    waiting: defaultdict[int, list[frozenset[int]]] = defaultdict(list)
    for child in sorted(left, key=rank):
        if child not in forms and child not in preceding:
            others = waiting[model.nodes[child].queue]
            if any(other <= before[child] for other in others):
                continue
            others.append(before[child])
        chosen.append(child)
    place = {child: at for at, child in enumerate(chosen)}
    after = (tuple(sorted(place[each] for each in before[child])) for child in chosen)
    return chosen, tuple(
        (*rank(child)[:3], each) for child, each in zip(chosen, after, strict=True)
    )
