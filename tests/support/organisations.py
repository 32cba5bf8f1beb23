"""Organisations as they are: teams, queues per kind of machine, agents on several queues, nested runs.

Seeded, so that each number stands for one organisation. They are no test's expectations: most are
set up as ClearML's pages advise, some as people do it on a Friday.
"""

from __future__ import annotations

import random

from mlops_ext.queues.check import Pipeline, Step, Topology, Worker

CONTROLLERS, CPU, GPU = "services", "default", "gpu"


class Organisation:
    """One organisation, drawn from *seed*."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.size = self.rng.choices([1, 2, 4, 8], [4, 4, 2, 1])[0]
        self.workers: list[Worker] = []
        self.teams = [f"team-{at}" for at in range(self.rng.randint(0, min(3, self.size)))]
        self.cpu = [CPU, *(["cpu-large"] if self.size > 1 else [])]
        self.gpu = [GPU, *self.rng.sample(["gpu-a100", "gpu-low"], self.rng.randint(0, 2))]
        self.nested_queue = CONTROLLERS

    def topology(self):
        """Its workers and pipelines."""
        self._controllers_agents()
        self._machines("cpu", [*self.cpu, *self.teams], self.rng.randint(1, 4 * self.size))
        self._machines("gpu", self.gpu, self.rng.randint(1, 3 * self.size))
        pipelines = [self._pipeline(at) for at in range(self.rng.randint(1, 3 * self.size))]
        self._serve_everything(pipelines)
        return Topology(workers=tuple(self.workers), pipelines=tuple(pipelines))

    def _add(self, name, queues, slots=1):
        self.workers.append(Worker(name=name, queues=tuple(dict.fromkeys(queues)), slots=slots))

    def _controllers_agents(self):
        """A services agent, one or several plain ones, or one that does everything."""
        kind = self.rng.choices(["mode", "plain", "counted", "shared", "none"], [4, 4, 2, 2, 1])[0]
        if kind == "mode":
            self._add("services-agent", [CONTROLLERS], None)
        elif kind == "counted":
            self._add("services-agent", [CONTROLLERS], self.rng.randint(2, 6))
        elif kind == "shared":
            self._add("one-for-all", [CONTROLLERS, CPU])
        else:
            for at in range(self.rng.randint(1, 1 + self.size)):
                queues = [CONTROLLERS] if kind == "plain" else [CONTROLLERS, *self.teams[:1]]
                self._add(f"controllers-{at}", queues)
        if self.rng.random() < 0.2:
            self.nested_queue = self.rng.choice([CPU, "pipelines"])
        if self.nested_queue == "pipelines":
            for at in range(self.rng.randint(1, 2 * self.size)):
                self._add(f"pipelines-{at}", ["pipelines"])

    def _machines(self, kind, queues, count):
        elastic = self.rng.random() < 0.15
        if elastic:
            self._add(f"{kind}-scaler", queues[:1], self.rng.choice([None, 4, 10, 20]))
        for at in range(count):
            mine = self.rng.sample(queues, min(len(queues), self.rng.choice([1, 1, 2, 3])))
            slots = self.rng.choice([1, 1, 1, 1, 2, 4]) if kind == "gpu" else 1
            self._add(f"{kind}-{at}", mine, slots)

    def _serve_everything(self, pipelines):
        """Agents for the queues that are used and that nobody happened to serve."""
        used = set()

        def walk(steps):
            for step in steps:
                used.add(step.queue)
                walk(step.steps)

        for each in pipelines:
            used.add(each.queue)
            walk(each.steps)
        served = {queue for worker in self.workers for queue in worker.queues}
        for queue in sorted(used - served - {None}):
            self._add(f"only-{queue}", [queue])

    def _pipeline(self, at):
        rng = self.rng
        queue = CONTROLLERS if rng.random() < 0.85 else rng.choice([CPU, *self.teams])
        instances = rng.choices([1, 2, 3, 5, 10], [6, 3, 2, 1, 1])[0]
        steps = self._steps(rng.choices([0, 1, 2], [6, 4, 1])[0])
        return Pipeline(name=f"pipeline-{at}", queue=queue, steps=steps, instances=instances)

    def _steps(self, depth):
        """One of the shapes that pipelines have."""
        rng = self.rng
        shape = rng.choice(["line", "fan", "diamond", "stages", "components"])
        light, heavy = rng.choice([*self.cpu, *self.teams]), rng.choice([*self.gpu, self.cpu[-1]])
        made: list[Step] = []

        def add(name, queue, *after, nested=False):
            inner = self._steps(depth - 1) if nested and depth else ()
            where = self.nested_queue if inner else queue
            made.append(Step(name=name, queue=where, after=after, steps=inner))

        if shape == "line":
            for name, queue in zip(
                ("ingest", "train", "report"), (light, heavy, light), strict=True
            ):
                add(name, queue, *(step.name for step in made[-1:]), nested=name == "train")
        elif shape == "stages":  # sub-pipelines one after another
            for number in range(rng.randint(2, 4)):
                add(f"stage-{number}", light, *(step.name for step in made[-1:]), nested=True)
        elif shape == "components":  # a decorated pipeline: all at once
            for number in range(rng.randint(2, 6)):
                add(f"component-{number}", rng.choice([light, heavy]))
        else:
            add("prepare", light)
            width = rng.randint(2, 8) if shape == "fan" else 2
            for number in range(width):
                add(f"fit-{number}", heavy, "prepare", nested=shape == "diamond")
            add("compare", light, *(f"fit-{number}" for number in range(width)))
        return tuple(made)


def organisation(seed):
    """The organisation with number *seed*, as a topology."""
    return Organisation(seed).topology()
