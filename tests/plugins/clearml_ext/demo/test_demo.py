"""The demo, with a real agent in a clone and on paper elsewhere."""

import pytest
from tests.support.queue_simulator import can_deadlock

from clearml_ext.demo.demo import PLAN, demo, simulated
from clearml_ext.topology.file import parse_topology
from mlops_ext.demo import Claim


def test_the_claim_on_paper_holds_and_says_that_it_is_simulated():
    (claim,) = [event for event in simulated() if isinstance(event, Claim)]
    assert claim.holds
    assert claim.what.startswith("simulated: ")


def test_the_plan_on_paper_hangs_when_it_is_played_out():
    assert can_deadlock(parse_topology(PLAN), limit=1000)


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_clone_shows_a_real_pipeline_on_a_real_agent():
    pytest.importorskip("clearml_agent")
    claims = [event for event in demo() if isinstance(event, Claim)]
    assert [claim.holds for claim in claims] == [True, True], claims
    assert "real agent" in claims[0].what
