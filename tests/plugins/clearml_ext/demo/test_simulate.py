"""The demo's plans, and the small simulation that it shows them with."""

import pytest

from clearml_ext.demo.demo import CASES, demo, simulated
from clearml_ext.demo.simulate import hanging_runs
from mlops_ext.demo import Claim
from mlops_ext.queues.check import Pipeline, Step, Topology, Worker, check


def test_every_claim_of_the_simulation_holds():
    claims = [event for event in simulated() if isinstance(event, Claim)]
    assert len(claims) == len(CASES)
    assert all(claim.holds and claim.what.startswith("simulated: ") for claim in claims)


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_clone_shows_a_real_pipeline_on_a_real_agent():
    pytest.importorskip("clearml_agent")
    claims = [event for event in demo() if isinstance(event, Claim)]
    assert [claim.holds for claim in claims] == [True, True], claims
    assert "real agent" in claims[0].what


@pytest.mark.parametrize("title", CASES)
def test_the_plans_of_the_demo_are_refused(title):
    assert not check(CASES[title]).safe


def test_a_safe_plan_never_hangs_in_the_simulation():
    topology = Topology(
        workers=(Worker(name="s", queues=("services",)), Worker(name="a", queues=("default",))),
        pipelines=(
            Pipeline(
                name="p", queue="services", instances=4, steps=(Step(name="x", queue="default"),)
            ),
        ),
    )
    assert check(topology).safe
    assert hanging_runs(topology, 200) == 0
