"""The checker against a simulator that plays the runs out."""

import random
from collections import Counter

import pytest
from tests.support.queue_simulator import can_deadlock, deadlocks_in_a_random_run

from mlops_ext.queues.bounds import possibly_stuck
from mlops_ext.queues.check import Pipeline, Step, Topology, Worker, check
from mlops_ext.queues.model import compile_topology


def random_steps(rng, queues, budget, depth):
    steps = []
    for number in range(rng.randint(1, 3)):
        if budget[0] <= 0:
            break
        budget[0] -= 1
        name = f"s{number}"
        before = tuple(step.name for step in steps if rng.random() < 0.4)
        nested = ()
        if depth and rng.random() < 0.3:
            nested = random_steps(rng, queues, budget, depth - 1)
        steps.append(Step(name=name, queue=rng.choice(queues), after=before, steps=nested))
    rng.shuffle(steps)
    return tuple(steps)


def tight_topology(rng, *, tasks):
    """Sub-pipelines one after another, on few slots that serve nearly everything."""
    queues = [f"q{number}" for number in range(rng.randint(1, 3))]

    def steps(budget, depth):
        made = []
        while budget[0] > 0 and (not made or rng.random() < 0.6):
            budget[0] -= 1
            before = (made[-1].name,) if made and rng.random() < 0.8 else ()
            nested = steps(budget, depth - 1) if depth and rng.random() < 0.7 else ()
            name, queue = f"s{len(made)}", rng.choice(queues)
            made.append(Step(name=name, queue=queue, after=before, steps=nested))
        return tuple(made)

    pipelines = []
    budget = [tasks]
    while budget[0] > 1:
        budget[0] -= 1
        name = f"p{len(pipelines)}"
        pipelines.append(Pipeline(name=name, queue=rng.choice(queues), steps=steps(budget, 3)))
    wanted = rng.randint(2, 5)
    agents = [
        Worker(name=f"w{at}", queues=tuple(q for q in queues if rng.random() < 0.8) or (queues[0],))
        for at in range(wanted)
    ]
    return Topology(workers=tuple(agents), pipelines=tuple(pipelines))


def random_topology(rng, *, workers, tasks, unserved=0.1):
    queues = [f"q{number}" for number in range(rng.randint(1, 4))]
    pipelines = []
    left = tasks
    while left > 1 and len(pipelines) < 4 and (not pipelines or rng.random() < 0.7):
        instances = rng.choice([1, 1, 1, 2, 3])
        budget = [left // instances - 1]
        if budget[0] < 1:
            break
        steps = random_steps(rng, queues, budget, depth=2)
        left = left - instances * (left // instances - budget[0])
        pipelines.append(
            Pipeline(
                name=f"p{len(pipelines)}",
                queue=None if rng.random() < 0.05 else rng.choice(queues),
                steps=steps,
                instances=instances,
            )
        )
    names = [f"w{number}" for number in range(rng.randint(1, workers))]
    agents = [
        Worker(
            name=name,
            queues=tuple(rng.sample(queues, rng.randint(1, len(queues)))),
            slots=None if rng.random() < 0.05 else rng.choice([1, 1, 1, 2, 3]),
        )
        for name in names
    ]
    if rng.random() > unserved:
        served = {queue for agent in agents for queue in agent.queues}
        agents += [
            Worker(name=f"extra-{queue}", queues=(queue,))
            for queue in queues
            if queue not in served
        ]
    pinned = [
        Pipeline(name=p.name, queue=p.queue, steps=p.steps, worker=rng.choice(agents).name)
        if rng.random() < 0.05
        else p
        for p in pipelines
    ]
    return Topology(workers=tuple(agents), pipelines=tuple(pinned))


def has_unserved_queue(topology):
    return any(not classes for classes in compile_topology(topology).classes_of)


@pytest.mark.parametrize("count", [1000, pytest.param(4000, marks=pytest.mark.integration)])
def test_small_topologies_are_decided_as_the_simulator_decides_them(capsys, count):
    rng = random.Random(20)
    tried = Counter()
    for number in range(count):
        size = rng.choice([3, 4, 5, 6, 7, 8])
        if number % 2:
            topology = random_topology(rng, workers=4, tasks=size)
        else:
            topology = tight_topology(rng, tasks=size)
        expected = can_deadlock(topology, limit=6_000)
        if expected is None:
            tried["too large to play out"] += 1
            continue
        verdict = check(topology)
        assert verdict.exact, topology
        assert verdict.safe is not expected, (number, topology, verdict.reasons)
        assert verdict.safe or verdict.reasons
        tried["can deadlock" if expected else "cannot deadlock"] += 1
        if not expected and not has_unserved_queue(topology):
            stuck, _ = possibly_stuck(compile_topology(topology))
            tried[
                "cannot deadlock, shown by the flow"
                if not stuck
                else "cannot deadlock, shown by search"
            ] += 1
    with capsys.disabled():
        print(f"\nsmall topologies, every run played: {dict(tried)}")
    assert tried["can deadlock"] > count / 4
    assert tried["cannot deadlock"] > count / 4


def test_the_flow_rule_alone_never_accepts_what_can_deadlock():
    rng = random.Random(21)
    accepted = 0
    for _ in range(600):
        topology = random_topology(rng, workers=4, tasks=6, unserved=0.0)
        if not possibly_stuck(compile_topology(topology))[0]:
            accepted += 1
            assert can_deadlock(topology, limit=6_000) is not True, topology
    assert accepted > 100


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it plays 300 topologies out, some of them 60,000 states large
def test_twelve_tasks_on_twelve_slots_are_decided_as_the_simulator_decides_them(capsys):
    rng = random.Random(22)
    tried = Counter()
    for number in range(300):
        if number % 2:
            topology = random_topology(rng, workers=7, tasks=12)
        else:
            topology = tight_topology(rng, tasks=12)
        verdict = check(topology)
        assert verdict.exact, topology
        expected = can_deadlock(topology, limit=60_000)
        tried[expected] += 1
        assert expected is None or verdict.safe is not expected, (topology, verdict.reasons)
    with capsys.disabled():
        print(f"\n12 tasks, 12 slots; deadlocks (None: too many runs to play): {dict(tried)}")
    assert min(tried[True], tried[False]) > 50


def test_large_topologies_are_never_wrongly_safe(capsys):
    rng = random.Random(23)
    tried = Counter()
    for _ in range(400):
        topology = random_topology(rng, workers=25, tasks=rng.randint(30, 90), unserved=0.02)
        verdict = check(topology, moves=10_000)
        tried["safe" if verdict.safe else "unsafe" if verdict.exact else "cautious"] += 1
        if verdict.safe:
            for _ in range(6):
                assert not deadlocks_in_a_random_run(topology, rng), topology
    with capsys.disabled():
        print(f"\nlarge topologies, random runs of each safe one: {dict(tried)}")
    assert tried["safe"] > 50
