"""The exact search: is there a run that ends with controllers stuck forever?

What is searched is not every run, but enough of them. Take a run that ends in a deadlock, with
the controllers H holding slots forever.

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

import itertools
import random
from collections.abc import Callable, Iterable, Iterator

from mlops_ext.queues.model import Model, Node, Placement
from mlops_ext.queues.reduce import Holding, reduce_model

# One instance of a pipeline: bits of the controllers that hold, bits of the steps that ended.
Progress = tuple[int, int]

# Per pipeline how many instances have come how far; per worker class the slots held.
State = tuple[tuple[tuple[tuple[Progress, int], ...], ...], tuple[int, ...]]

# Pipeline, the progress of one of its instances before and after, the class that took it.
Move = tuple[int, Progress, Progress, int | None]

# Steps that could wait forever, and worker classes, up to which there is a search: which step comes
# after which is a square of the first, and each state is as long as the second.
_STEPS, _CLASSES = 2_000, 1_000

# Pipelines and classes of workers up to which a move counts as one; with twice as many, as two.
_SMALL = 20

# Runs that are tried at random before all are: most deadlocks show in the first few.
_PLAYS = 60
# The part of the budget, one in so many, that these take at most.
_SHARE = 3


class BudgetExceededError(Exception):
    """The search was given up before it was complete."""


def find_deadlock(
    model: Model, stuck: frozenset[int], blocked: Callable[[], Iterable[Node]], budget: int
) -> list[Placement] | None:
    """The instances that hold slots in some deadlock, or None where there is no deadlock.

    First by runs in which controllers start before steps end, drawn at random with a fixed seed;
    then by looking at every run.

    Args:
        model: the topology; every queue served, no steps that wait for each other.
        stuck: numbers of the controllers that could be stuck.
        blocked: gives their steps whose queues they could fill.
        budget: how many moves to try.

    Raises:
        BudgetExceededError: neither was found within *budget* moves.
    """
    steps = [] if len(model.classes) > _CLASSES else list(blocked())
    if not 0 < len(steps) <= _STEPS:
        raise BudgetExceededError
    reduced = reduce_model(model, stuck, frozenset(step.queue for step in steps))
    search = _Search(reduced.model, reduced.stuck)
    found = search.play(budget // _SHARE) or search.run(budget)
    return None if found is None else reduced.restore(found)


class _Search:
    def __init__(self, model: Model, stuck: frozenset[int]) -> None:
        self.model, self.stuck = model, stuck
        self.bits = {
            node.index: 1 << (node.index - model.roots[node.pipeline]) for node in model.nodes
        }
        self.fits: dict[tuple[int, tuple[int, ...]], bool] = {}
        # What a move costs: a state as large as this is copied.
        self.cost = 1 + (len(model.classes) + len(model.roots)) // _SMALL

    def play(self, budget: int) -> list[Holding]:
        """A deadlock that a random run comes to, or nothing."""
        rng = random.Random(0)  # noqa: S311  # no secret
        for _ in range(_PLAYS):
            state, done, bias = self._start(), list[Move](), rng.random()
            while True:
                moves = list(itertools.islice(self._moves(state), budget))
                budget -= len(moves) + self.cost
                if budget <= 0:
                    return []
                if not moves or self._is_stuck(state):
                    break
                holds = [move for move in moves if move[1][0] != move[2][0]]
                done.append(rng.choice(holds if holds and rng.random() < bias else moves))
                state = self._apply(state, done[-1])
            if self._is_stuck(state):
                return self._replay(done, state[1])
        return []

    def run(self, budget: int) -> list[Holding] | None:
        """A deadlock, or None if no run comes to one.

        Raises:
            BudgetExceededError: more than *budget* moves would have to be tried.
        """
        pending = [self._start()]
        origin: dict[State, tuple[State, Move] | None] = dict.fromkeys(pending)
        while pending:
            state = pending.pop()
            if self._is_stuck(state):
                moves, slots = [], state[1]
                while (step := origin[state]) is not None:
                    state, move = step
                    moves.append(move)
                return self._replay(moves[::-1], slots)
            for move in self._moves(state):
                budget -= self.cost
                if budget < 0:
                    raise BudgetExceededError
                after = self._apply(state, move)
                if after not in origin:
                    origin[after] = (state, move)
                    pending.append(after)
        return None

    def _start(self) -> State:
        fresh = tuple((((0, 0), count),) for count in self.model.counts)
        return fresh, (0,) * len(self.model.classes)

    def _has_slot(self, at: int, held: tuple[int, ...]) -> bool:
        slots = self.model.classes[at].slots
        return slots is None or held[at] < slots

    def _has_room(self, node: Node, held: tuple[int, ...]) -> bool:
        return any(self._has_slot(at, held) for at in self.model.classes_of[node.queue])

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
            for progress, _ in instances:
                for node in self._holding(pipeline, progress):
                    found = True
                    if not any(progress[0] & self.bits[child] for child in node.children) and all(
                        self._has_room(child, state[1]) for child in self._waiting(node, progress)
                    ):
                        return False
        return found

    def _moves(self, state: State) -> Iterator[Move]:
        for pipeline, instances in enumerate(state[0]):
            for progress, _ in instances:
                if progress == (0, 0):
                    root = self.model.nodes[self.model.roots[pipeline]]
                    yield from self._hold(pipeline, progress, root, state[1])
                for parent in self._holding(pipeline, progress):
                    for node in self._waiting(parent, progress):
                        if node.precedes and self._can_end(node, state[1]):
                            ended = progress[1] | self.bits[node.index]
                            yield pipeline, progress, (progress[0], ended), None
                        yield from self._hold(pipeline, progress, node, state[1])

    def _hold(
        self, pipeline: int, progress: Progress, node: Node, held: tuple[int, ...]
    ) -> Iterator[Move]:
        """*node* starts, never to end."""
        if node.index not in self.stuck:
            return
        after = (progress[0] | self.bits[node.index], progress[1])
        for at in self.model.classes_of[node.queue]:
            if self._has_slot(at, held):
                yield pipeline, progress, after, at

    def _apply(self, state: State, move: Move) -> State:
        pipeline, before, after, at = move
        counts = dict(state[0][pipeline])
        counts[before] -= 1
        counts[after] = counts.get(after, 0) + 1
        instances = tuple(sorted(each for each in counts.items() if each[1]))
        progress = (*state[0][:pipeline], instances, *state[0][pipeline + 1 :])
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
                for at in self.model.classes_of[node.queue]
            )
        return known

    def _replay(self, moves: list[Move], slots: tuple[int, ...]) -> list[Holding]:
        """The instances that hold slots after *moves*, where *slots* are held in all."""
        found: list[tuple[int, Progress, dict[int, int]]] = []
        for pipeline, before, after, at in moves:
            places: dict[int, int] = {}
            if before != (0, 0):
                known = next(each for each in found if each[:2] == (pipeline, before))
                found.remove(known)
                places = known[2]
            if at is not None:
                (node,) = self._holding(pipeline, (after[0] & ~before[0], 0))
                places[node.index] = at
            found.append((pipeline, after, places))
        return [
            (
                pipeline,
                places,
                [
                    node.index
                    for parent in self._holding(pipeline, progress)
                    for node in self._waiting(parent, progress)
                    if not self._has_room(node, slots)
                ],
            )
            for pipeline, progress, places in found
        ]
