"""Filling a queue's slots with controllers, against Hall's theorem."""

import itertools
import random

from mlops_ext.queues.bounds import Offer, fill_queue
from mlops_ext.queues.check import Pipeline, Step, Topology, Worker
from mlops_ext.queues.model import compile_topology


def random_offer(rng):
    """Workers that all serve queue "t" and some of the controllers' queues, and controllers."""
    sources = [f"s{number}" for number in range(rng.randint(1, 6))]
    workers = [
        Worker(
            name=f"w{number}",
            queues=("t", *rng.sample(sources, rng.randint(0, len(sources)))),
            slots=rng.randint(0, 3),
        )
        for number in range(rng.randint(1, 6))
    ]
    pipelines = [
        Pipeline(
            name=source,
            queue=source,
            steps=(Step(name="train", queue="t"),),
            instances=rng.randint(1, 4),
        )
        for source in sources
    ]
    model = compile_topology(Topology(workers=tuple(workers), pipelines=tuple(pipelines)))
    roots = [model.nodes[root] for root in model.roots]
    return model.queues.index("t"), Offer(
        model, {frozenset((root.queue,)): model.counts[root.pipeline] for root in roots}
    )


def can_fill(queue, offer):
    """Hall: each set of worker classes has controllers enough in the queues that lead to it."""
    classes = offer.model.classes_of[queue]
    for count in range(1, len(classes) + 1):
        for some in itertools.combinations(classes, count):
            slots = sum(offer.model.classes[at].slots for at in some)
            leading = set().union(*(offer.model.classes[at].queues for at in some))
            if slots > sum(n for source, n in offer.counts.items() if source & leading):
                return False
    return True


def test_a_queue_is_filled_exactly_where_controllers_enough_lead_to_each_of_its_workers():
    seen = set()
    for seed in range(3000):
        queue, offer = random_offer(random.Random(seed))
        fill = fill_queue(queue, offer)
        assert (fill is not None) == can_fill(queue, offer), f"seed {seed}"
        seen.add(fill is not None)
        if fill is None:
            continue
        given = dict.fromkeys(offer.counts, 0)
        taken = dict.fromkeys(offer.model.classes_of[queue], 0)
        for (source, at), number in fill.items():
            assert number > 0
            assert source & offer.model.classes[at].queues, f"seed {seed}"
            given[source] += number
            taken[at] += number
        assert all(given[source] <= offer.counts[source] for source in given), f"seed {seed}"
        assert all(slots == offer.model.classes[at].slots for at, slots in taken.items())
    assert seen == {True, False}


def test_a_controller_that_was_put_in_the_way_moves_on_along_a_long_path():
    """Each worker but the last could take either of two queues; the first choice of all is wrong."""
    length = 400
    workers = [
        Worker(name=f"w{number}", queues=("t", f"s{number}", f"s{number + 1}"))
        for number in range(length)
    ]
    sources = [f"s{number}" for number in range(length)]
    pipelines = [
        Pipeline(name=source, queue=source, steps=(Step(name="train", queue="t"),))
        for source in sources
    ]
    spare = Pipeline(name="spare", queue=f"s{length}", steps=(Step(name="train", queue="t"),))
    for absent in (0, length // 2, length - 1):
        chosen = [*pipelines[:absent], *pipelines[absent + 1 :], spare]
        model = compile_topology(Topology(workers=tuple(workers), pipelines=tuple(chosen)))
        counts = {frozenset((model.nodes[root].queue,)): 1 for root in model.roots}
        fill = fill_queue(model.queues.index("t"), Offer(model, counts))
        assert fill is not None
        assert sum(fill.values()) == length
