"""Growth in place on nodes that refuse, defer and delay: it never costs a step, nor its neighbours.

Each case runs twice on the double in virtual time, with growth and without; the same curve, the
same nodes. What completes without growth has to complete with it, in no more attempts.
"""

import random

import pytest

pytest.importorskip("kubernetes")

from tests.doubles.kubernetes import Cluster, clock
from tests.doubles.kubernetes.sizes import total
from tests.support.zenml_week import MIB, POLL_S, Run, Step, World, patient

from mlops_ext.memory import Quantity

NODE_MIB = 8 * 1024
WISH_S = 75
"""How long more than 1.5 times what is used may be held: a wish is looked after every 3 s, and
given up after 60 s at the most; the double moves in steps of a second."""


def case(seed):
    """A step's curve and first limit, and a cluster that is more or less full."""
    chance = random.Random(seed)
    peak = chance.uniform(200, 3000)
    seconds = chance.choice([5, 30, 120, 400])
    points = sorted(chance.uniform(1, seconds) for _ in range(chance.randint(0, 3)))
    curve = [(one, chance.uniform(50, peak)) for one in points]
    step = Step(
        name="step",
        curve=[*curve, (seconds + 1, peak), (seconds + 5, chance.uniform(50, peak))],
        memory=f"{round(peak * chance.uniform(0.15, 1.1)) + 40}Mi",
    )
    # the neighbour leaves room for what the step needs, but mostly not for much more
    first = Quantity.parse(step.memory) / MIB
    most = max(peak, first) + chance.uniform(0, 0.2 * peak)
    taken = 0 if chance.random() < 0.2 else NODE_MIB - 1200 - most
    return step, max(0, taken), chance


def run_it(seed, monkeypatch, *, grows):
    """How many attempts it took, and what was held beyond need, as (since, MiB)."""
    step, taken, chance = case(seed)
    step.in_place = grows
    nodes = {"node-a": f"{NODE_MIB}Mi"}
    with Cluster(nodes, real=False, tls=False, stepped=True, backoff_s=10) as cluster:
        world = World(cluster)
        world.policy = "double"
        patient(world, monkeypatch)
        most = chance.choice([0, 1, 5, 20, 60])
        resizes = cluster.kubelet.resizes
        resizes.latency = lambda node: chance.uniform(0, most)
        if chance.random() < 0.3:
            resizes.infeasible.add("node-a")
        neighbour = Step(name="neighbour", curve=[(900, 50)], memory=f"{round(taken)}Mi")
        run = Run(pipeline="p", steps={"step": step})
        if taken:
            world.submit(Run(pipeline="other", steps={"neighbour": neighbour}))
            world.pass_time(20)
        world.submit(run)
        held = Held(cluster, run.run_id)
        cluster.beside.append(held.look)
        for _ in range(600):
            if run.is_over:
                break
            world.pass_time(POLL_S)
        return run, held.longest


class Held:
    """How long the step's pod asked for more than it began with and than 1.5 times its use."""

    def __init__(self, cluster, run_id):
        self.cluster, self.labels = cluster, f"run_id={run_id},step_name"
        self.first, self.since, self.longest = {}, None, 0.0

    def look(self):
        is_beyond = False
        for pod in self.cluster.list("pods", self.labels):
            found = self.cluster.kubelet.pretender.pods.get(pod["metadata"]["uid"])
            if found and found.companion:
                asks = total(pod, "requests", given=True)
                first = self.first.setdefault(found.uid, asks)
                peak = max(found.used(), found.companion.sampler.report.peak)
                is_wish = asks > found.limit
                is_beyond = is_wish or asks > max(first, 1.5 * peak + 2 * MIB)
        now = clock.monotonic()
        self.since = (self.since or now) if is_beyond else None
        self.longest = max(self.longest, now - (self.since or now))


TELLING = [12, 20, *(pytest.param(seed, marks=pytest.mark.integration) for seed in (4, 8, 11, 16))]
"""Among them wishes that are deferred, infeasible, late and granted."""
MORE = [pytest.param(seed, marks=pytest.mark.slow) for seed in range(100, 400)]


@pytest.mark.parametrize("seed", [*TELLING, *MORE])
def test_growth_costs_no_step_an_attempt_and_holds_no_room_that_others_wait_for(seed, monkeypatch):
    (bare, _), (grown, longest) = (
        run_it(seed, monkeypatch, grows=grows) for grows in (False, True)
    )
    told = f"{grown.steps['step']}\n{grown.messages}\n{grown.attempts}"
    assert bare.ended == {"step": "completed"}, bare.messages
    assert grown.ended == bare.ended, told
    kills = [len(run.attempts["step"]) for run in (bare, grown)]
    assert kills[1] <= kills[0], told
    assert longest <= WISH_S, f"{told}\nheld {longest:.0f} s"
