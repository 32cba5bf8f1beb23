"""The exact search: is there a run that ends with controllers stuck for ever?

What is searched is not every run, but enough of them. Take a run that ends in a deadlock, with
the controllers H holding slots for ever.

- Everything else ended, and can be taken out of the way: what one task and all below it did
  depends on nothing outside but free slots, and by doing it in one go, as soon as it starts, it
  meets no more held slots than in the run itself. So a state needs only the controllers of H
  started so far, the slots they hold, and which of their steps have ended ("in one go").
- Ending a step that no sibling waits for, or a whole pipeline, brings nothing new.
- H is stuck as soon as each of its members has a step that is in H, or waits in a queue whose
  slots H holds: slots of H are never given back, so any way to go on ends in a deadlock.

Instances of one pipeline, and workers that serve the same queues, are interchangeable.
"""

from __future__ import annotations

from collections.abc import Iterator

from mlops_ext.queues.model import Model, Node, Placement

Progress = tuple[int, int]
"""One instance of a pipeline: bits of the controllers that hold, bits of the steps that ended."""

State = tuple[tuple[tuple[Progress, ...], ...], tuple[int, ...]]
"""Per pipeline the sorted progress of its instances; per worker class the slots held."""

Move = tuple[int, Progress, Progress, int | None]
"""Pipeline, the progress of one of its instances before and after, the class that took it."""


class BudgetExceededError(Exception):
    """The search was given up before it was complete."""


def find_deadlock(model: Model, stuck: frozenset[int], budget: int) -> list[Placement] | None:
    """The instances that hold slots in some deadlock, or None where there is no deadlock.

    Args:
        model: the topology; every queue served, no steps that wait for each other.
        stuck: numbers of the controllers that could be stuck.
        budget: how many states to look at.

    Raises:
        BudgetExceededError: neither was found within *budget* states.
    """
    return _Search(model, stuck).run(budget)


class _Search:
    def __init__(self, model: Model, stuck: frozenset[int]) -> None:
        self.model, self.stuck = model, stuck
        self.bits = {
            node.index: 1 << (node.index - model.roots[node.pipeline]) for node in model.nodes
        }
        self.fits: dict[tuple[int, tuple[int, ...]], bool] = {}

    def run(self, budget: int) -> list[Placement] | None:
        start = self._start()
        origin: dict[State, tuple[State, Move] | None] = {start: None}
        pending = [start]
        while pending:
            state = pending.pop()
            if self._is_stuck(state):
                return self._replay(state, origin)
            if len(origin) > budget:
                raise BudgetExceededError
            for move in self._moves(state):
                after = self._apply(state, move)
                if after not in origin:
                    origin[after] = (state, move)
                    pending.append(after)
        return None

    def _start(self) -> State:
        fresh: Progress = (0, 0)
        pipelines = self.model.topology.pipelines
        return tuple((fresh,) * each.instances for each in pipelines), (0,) * len(
            self.model.classes
        )

    def _has_slot(self, at: int, held: tuple[int, ...]) -> bool:
        slots = self.model.classes[at].slots
        return slots is None or held[at] < slots

    def _has_room(self, node: Node, held: tuple[int, ...]) -> bool:
        return any(self._has_slot(at, held) for at in self.model.classes_for(node))

    def _waiting(self, parent: Node, progress: Progress) -> Iterator[Node]:
        """The children of the holding controller *parent* that wait in a queue."""
        holds, ended = progress
        for child in parent.children:
            bit = self.bits[child]
            node = self.model.nodes[child]
            if not (holds | ended) & bit and all(self.bits[each] & ended for each in node.after):
                yield node

    def _holding(self, pipeline: int, progress: Progress) -> Iterator[Node]:
        holds, root = progress[0], self.model.roots[pipeline]
        while holds:
            lowest = holds & -holds
            yield self.model.nodes[root + lowest.bit_length() - 1]
            holds ^= lowest

    def _is_stuck(self, state: State) -> bool:
        """Whether there are controllers that hold, and all of them are stuck."""
        found = False
        for pipeline, instances in enumerate(state[0]):
            for progress in instances:
                for node in self._holding(pipeline, progress):
                    found = True
                    if not any(progress[0] & self.bits[child] for child in node.children) and all(
                        self._has_room(child, state[1]) for child in self._waiting(node, progress)
                    ):
                        return False
        return found

    def _moves(self, state: State) -> Iterator[Move]:
        for pipeline, instances in enumerate(state[0]):
            for progress in sorted(set(instances)):
                if progress == (0, 0):
                    root = self.model.nodes[self.model.roots[pipeline]]
                    yield from self._hold(pipeline, progress, root, state[1])
                for parent in self._holding(pipeline, progress):
                    waiting = list(self._waiting(parent, progress))
                    for node in waiting:
                        if node.precedes and self._can_end(node, state[1]):
                            ended = progress[1] | self.bits[node.index]
                            yield pipeline, progress, (progress[0], ended), None
                    for node in waiting:
                        yield from self._hold(pipeline, progress, node, state[1])

    def _hold(
        self, pipeline: int, progress: Progress, node: Node, held: tuple[int, ...]
    ) -> Iterator[Move]:
        """*node* starts, never to end."""
        if node.index not in self.stuck:
            return
        after = (progress[0] | self.bits[node.index], progress[1])
        if node.queue is None:
            yield pipeline, progress, after, None
        for at in self.model.classes_for(node):
            if self._has_slot(at, held):
                yield pipeline, progress, after, at

    def _apply(self, state: State, move: Move) -> State:
        pipeline, before, after, at = move
        instances = list(state[0][pipeline])
        instances[instances.index(before)] = after
        progress = (*state[0][:pipeline], tuple(sorted(instances)), *state[0][pipeline + 1 :])
        return progress, self._taken(state[1], at)

    def _taken(self, held: tuple[int, ...], at: int | None) -> tuple[int, ...]:
        if at is None or self.model.classes[at].slots is None:
            return held
        return (*held[:at], held[at] + 1, *held[at + 1 :])

    def _can_end(self, node: Node, held: tuple[int, ...]) -> bool:
        """Whether *node* and all below it can run to their end on the slots that are free."""
        key = (node.index, held)
        known = self.fits.get(key)
        if known is None:
            known = self.fits[key] = any(
                self._has_slot(at, held)
                and all(
                    self._can_end(self.model.nodes[child], self._taken(held, at))
                    for child in node.children
                )
                for at in self.model.classes_for(node)
            )
        return known

    def _replay(
        self, state: State, origin: dict[State, tuple[State, Move] | None]
    ) -> list[Placement]:
        """The instances that hold slots in *state*, with the classes that took them."""
        moves: list[Move] = []
        step = origin[state]
        while step is not None:
            moves.append(step[1])
            step = origin[step[0]]
        found: list[tuple[int, Progress, dict[int, int | None]]] = []
        for pipeline, before, after, at in reversed(moves):
            places: dict[int, int | None] = {}
            if before != (0, 0):
                known = next(each for each in found if each[:2] == (pipeline, before))
                found.remove(known)
                places = known[2]
            for bit in self._holding(pipeline, (after[0] & ~before[0], 0)):
                places[bit.index] = at
            found.append((pipeline, after, places))
        return [
            Placement(
                pipeline=pipeline,
                holds=places,
                ended=frozenset(node.index for node in self._holding(pipeline, (progress[1], 0))),
            )
            for pipeline, progress, places in found
        ]
