"""What is done about a checked pipeline, by what the check found and what can still be changed."""

import dataclasses

import pytest

from clearml_ext.check.fixes import FixKind
from clearml_ext.check.results import Answer, examine
from clearml_ext.decision import (
    AT_ENQUEUE,
    AT_FIRST_STEP,
    AT_LAUNCH,
    Proceed,
    Refuse,
    Reroute,
    decide,
)
from clearml_ext.settings import ClearmlSettings
from mlops_ext.queues.check import Pipeline, Step, Topology, Worker

FIX = ClearmlSettings(fix=True)
STEPS = (Step(name="train", queue="default"),)
TOPOLOGY = Topology(
    workers=(
        Worker(name="a1", queues=("default",)),
        Worker(name="a2", queues=("other",)),
        Worker(name="a3", queues=("services",)),
    ),
    pipelines=(Pipeline(name="nightly", queue="default", steps=STEPS),),
)
UNSAFE = examine("nightly", TOPOLOGY)


def test_a_safe_pipeline_goes_on():
    safe = dataclasses.replace(UNSAFE, answer=Answer.SAFE)
    assert decide(safe, FIX, AT_LAUNCH) == Proceed()


@pytest.mark.parametrize(
    ("applicable", "kind"),
    [
        (AT_LAUNCH, FixKind.CONTROLLER_QUEUE),
        (AT_ENQUEUE, FixKind.CONTROLLER_QUEUE),
        (AT_FIRST_STEP, FixKind.STEP_QUEUE),
        ((FixKind.LOCAL_CONTROLLER,), FixKind.LOCAL_CONTROLLER),
    ],
)
def test_an_unsafe_pipeline_is_rerouted_by_the_first_fix_that_can_still_be_applied(
    applicable, kind
):
    decision = decide(UNSAFE, FIX, applicable)
    assert isinstance(decision, Reroute)
    assert decision.fix.kind is kind


def test_an_unsafe_pipeline_is_refused_unless_a_fix_is_asked_for():
    assert decide(UNSAFE, ClearmlSettings(), AT_LAUNCH) == Refuse(UNSAFE)
    assert decide(UNSAFE, FIX, ()) == Refuse(UNSAFE)


def test_what_is_not_known_is_never_rerouted():
    unknown = dataclasses.replace(UNSAFE, answer=Answer.UNKNOWN)
    assert decide(unknown, FIX, AT_LAUNCH) == Refuse(unknown)
