"""The demo: three plans of queues and agents, checked, mended, and played out run by run."""

from __future__ import annotations

from collections.abc import Iterator

from clearml_ext.check.fixes import propose
from clearml_ext.demo.simulate import hanging_runs
from mlops_ext.demo import Claim, Event, Progress
from mlops_ext.queues.check import Pipeline, Step, Topology, Worker, check

RUNS = 500
"""Random runs of each plan: enough to meet an order of events that one run in fifty takes."""

_TRAIN = (
    Step(name="prepare", queue="default"),
    Step(name="fit", queue="default", after=("prepare",)),
)

CASES = {
    "one agent on both queues": Topology(
        workers=(Worker(name="agent-1", queues=("services", "default")),),
        pipelines=(Pipeline(name="train", queue="services", steps=_TRAIN),),
    ),
    "two runs of one pipeline, two agents": Topology(
        workers=(
            Worker(name="agent-1", queues=("default",)),
            Worker(name="agent-2", queues=("default",)),
        ),
        pipelines=(Pipeline(name="train", queue="default", steps=_TRAIN, instances=2),),
    ),
    "a sub-pipeline in the queue of its steps": Topology(
        workers=(
            Worker(name="services-agent", queues=("services",), slots=None),
            Worker(name="gpu-1", queues=("gpu",)),
        ),
        pipelines=(
            Pipeline(
                name="tune",
                queue="services",
                steps=(Step(name="trials", queue="gpu", steps=(Step(name="trial", queue="gpu"),)),),
            ),
        ),
    ),
}
"""Plans that deadlock, by what is wrong with them."""


def demo() -> Iterator[Event]:
    """Check each plan, and let random runs say whether the checker is right."""
    for title, topology in CASES.items():
        yield Progress(text=f"checking and playing out: {title}")
        verdict = check(topology)
        before = hanging_runs(topology, RUNS)
        fix = next(propose(topology, verdict))
        after = hanging_runs(fix.topology, RUNS)
        yield Claim(
            what=f"{title}: runs that hang, of {RUNS}",
            before=f"{before}: {verdict.reasons[0]}",
            after=f"{after}: {fix.text}",
            holds=not verdict.safe and before > 0 and after == 0 and check(fix.topology).safe,
        )
