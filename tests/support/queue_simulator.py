"""A simulator that plays every run of a small topology, and random runs of a large one.

It knows nothing of the checker: it reads the same plain data and follows the rules of the game
one event at a time. Start a waiting task on any worker with a free slot that listens; end any
plain step that runs; a controller ends when its last step has. A deadlock is a state in which no
event is left and a task has not ended.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

ABSENT, QUEUED, ENDED, OUTSIDE = -1, -2, -3, -4


@dataclass
class Task:
    queue: str | None
    parent: int | None
    pinned: str | None = None
    after: list[int] = field(default_factory=list)
    children: list[int] = field(default_factory=list)


class Game:
    def __init__(self, topology):
        self.workers = [
            (worker.name, set(worker.queues), worker.slots) for worker in topology.workers
        ]
        self.tasks: list[Task] = []
        for pipeline in topology.pipelines:
            for _ in range(pipeline.instances):
                root = self._add(Task(pipeline.queue, None, pipeline.worker))
                self._add_steps(root, pipeline.steps)

    def _add(self, task):
        self.tasks.append(task)
        return len(self.tasks) - 1

    def _add_steps(self, parent, steps):
        numbers = {}
        for step in steps:
            numbers[step.name] = self._add(Task(step.queue, parent))
            self.tasks[parent].children.append(numbers[step.name])
        for step in steps:
            self.tasks[numbers[step.name]].after = [numbers[name] for name in step.after]
            self._add_steps(numbers[step.name], step.steps)

    def start(self):
        return self.settle([QUEUED if task.parent is None else ABSENT for task in self.tasks])

    def settle(self, state):
        """What follows without anybody's choice: enqueueing, and controllers that end."""
        state = list(state)
        changed = True
        while changed:
            changed = False
            for number, task in enumerate(self.tasks):
                if state[number] == QUEUED and task.queue is None and task.pinned is None:
                    state[number] = OUTSIDE
                    changed = True
                if (
                    state[number] == ABSENT
                    and self.is_running(state[task.parent])
                    and all(state[each] == ENDED for each in task.after)
                ):
                    state[number] = QUEUED
                    changed = True
                if (
                    task.children
                    and self.is_running(state[number])
                    and all(state[each] == ENDED for each in task.children)
                ):
                    state[number] = ENDED
                    changed = True
                if state[number] == OUTSIDE and not task.children:
                    state[number] = ENDED
                    changed = True
        return tuple(state)

    @staticmethod
    def is_running(status):
        return status >= 0 or status == OUTSIDE

    def listens(self, worker, task):
        if task.pinned is not None:
            return worker[0] == task.pinned
        return task.queue in worker[1]

    def events(self, state):
        used = [0] * len(self.workers)
        for status in state:
            if status >= 0:
                used[status] += 1
        for number, task in enumerate(self.tasks):
            if state[number] == QUEUED:
                for at, worker in enumerate(self.workers):
                    has_room = worker[2] is None or used[at] < worker[2]
                    if has_room and self.listens(worker, task):
                        yield number, at
            elif state[number] >= 0 and not task.children:
                yield number, ENDED

    def play(self, state, event):
        number, status = event
        return self.settle((*state[:number], status, *state[number + 1 :]))

    def is_over(self, state):
        return all(status == ENDED for status in state)


def can_deadlock(topology, limit):
    """Whether some run deadlocks, by playing all of them; None beyond *limit* states."""
    game = Game(topology)
    seen = {game.start()}
    pending = list(seen)
    while pending:
        state = pending.pop()
        following = [game.play(state, event) for event in game.events(state)]
        if not following and not game.is_over(state):
            return True
        for after in following:
            if after not in seen:
                seen.add(after)
                pending.append(after)
        if len(seen) > limit:
            return None
    return False


def deadlocks_in_a_random_run(topology, rng: random.Random):
    """Whether one run deadlocks in which controllers are started first, mostly."""
    game = Game(topology)
    state = game.start()
    bias = rng.random()
    while True:
        events = list(game.events(state))
        if not events:
            return not game.is_over(state)
        greedy = [each for each in events if each[1] >= 0 and game.tasks[each[0]].children]
        state = game.play(state, rng.choice(greedy if greedy and rng.random() < bias else events))
