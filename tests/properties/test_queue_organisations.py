"""The checker on organisations as they are: how often it is cautious, and that it never errs.

The judge is the simulator: small organisations are played out, of larger ones runs are drawn.
"""

import random
from collections import Counter

import pytest
from tests.support.organisations import organisation
from tests.support.queue_simulator import can_deadlock, deadlocks_in_a_random_run

from mlops_ext.queues.check import check

ORGANISATIONS = 540
MOST_CAUTIOUS = 0.01


def test_realistic_organisations_get_an_answer_nearly_always(capsys):
    found = Counter()
    for seed in range(ORGANISATIONS):
        verdict = check(organisation(seed))
        found["safe" if verdict.safe else "unsafe" if verdict.exact else "cautious"] += 1
    with capsys.disabled():
        print(f"\n{ORGANISATIONS} organisations: {dict(found)}")
    assert found["cautious"] <= MOST_CAUTIOUS * ORGANISATIONS
    assert min(found["safe"], found["unsafe"]) > ORGANISATIONS / 5


@pytest.mark.slow
@pytest.mark.timeout(1800)  # it plays 540 organisations, each several times
def test_no_organisation_that_can_deadlock_is_called_safe(capsys):
    rng, tried = random.Random(31), Counter()
    for seed in range(ORGANISATIONS):
        topology = organisation(seed)
        if not check(topology).safe:
            continue
        for _ in range(3):
            assert not deadlocks_in_a_random_run(topology, rng), seed
        expected = can_deadlock(topology, limit=300)
        assert expected is not True, seed
        tried["played out" if expected is False else "played at random"] += 1
    with capsys.disabled():
        print(f"\norganisations called safe: {dict(tried)}")
    assert tried["played out"] > 10
