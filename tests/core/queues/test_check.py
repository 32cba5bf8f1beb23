"""What the checker says, on topologies small enough to see through."""

import pytest

from mlops_ext.errors import TopologyError, UnknownNameError
from mlops_ext.queues.check import ChainKind, Pipeline, Step, Topology, Worker, check


def agent(name, *queues, slots=1):
    return Worker(name=name, queues=queues, slots=slots)


def train(*, queue="default", step_queue="default", instances=1, **more):
    return Pipeline(
        name="nightly",
        queue=queue,
        steps=(Step(name="train", queue=step_queue),),
        instances=instances,
        **more,
    )


def verdict_of(workers, *pipelines):
    return check(Topology(workers=tuple(workers), pipelines=pipelines))


def nested(levels, queue="services"):
    steps = (Step(name="work", queue="default"),)
    for level in range(levels - 1, 0, -1):
        steps = (Step(name=f"level-{level}", queue=queue, steps=steps),)
    return steps


def test_one_agent_for_controller_and_step_is_refused_with_the_chain():
    verdict = verdict_of([agent("agent-1", "default")], train())
    assert not verdict.safe
    assert verdict.exact
    assert verdict.reasons == (
        'nightly: controller holds agent-1 → step "train" waits in default → only agent-1 listens',
    )


def test_two_queues_on_one_agent_are_refused():
    verdict = verdict_of([agent("agent-1", "services", "default")], train(queue="services"))
    assert [chain.kind for chain in verdict.chains] == [ChainKind.DEADLOCK]


def test_a_second_agent_for_the_steps_makes_it_safe():
    assert verdict_of([agent("a", "services"), agent("b", "default")], train(queue="services")).safe


def test_two_instances_on_two_agents_hold_each_other_up():
    agents = [agent("a", "default"), agent("b", "default")]
    assert verdict_of(agents, train()).safe
    verdict = verdict_of(agents, train(instances=2))
    assert not verdict.safe
    assert "only a and b listen" in verdict.reasons[0]
    assert "also held by nightly #" in verdict.reasons[0]


def test_a_sub_pipeline_that_takes_the_step_agent_is_named():
    pipeline = Pipeline(
        name="outer",
        queue="services",
        steps=(Step(name="tune", queue="default", steps=(Step(name="trial", queue="default"),)),),
    )
    verdict = verdict_of([agent("s", "services", slots=None), agent("a", "default")], pipeline)
    assert verdict.reasons == (
        (
            'outer: controller holds s → sub-pipeline "tune" holds a → step "trial" waits in default'
            " → only a listens"
        ),
    )


@pytest.mark.parametrize(("count", "depth"), [(1, 2), (2, 3), (3, 2), (30, 4)])
def test_nested_controllers_need_one_slot_more_than_all_but_the_deepest(count, depth):
    needed = count * (depth - 1) + 1
    for slots, safe in ((needed, True), (needed - 1, False)):
        pipeline = Pipeline(name="p", queue="services", steps=nested(depth), instances=count)
        verdict = verdict_of([agent("s", "services", slots=slots), agent("a", "default")], pipeline)
        assert verdict.safe is safe, slots


def test_an_unbounded_worker_never_fills_up():
    pipelines = train(queue="services", step_queue="services", instances=50)
    assert verdict_of([agent("glue", "services", slots=None)], pipelines).safe


def test_a_queue_that_nobody_serves_is_refused_with_the_nearest_name():
    verdict = verdict_of(
        [agent("a", "services"), agent("b", "gpu-a100")],
        train(queue="services", step_queue="gpu-a10"),
    )
    assert verdict.reasons == (
        'nightly: step "train" waits in gpu-a10 → no worker listens (did you mean gpu-a100?)',
    )


def test_a_known_queue_without_workers_is_told_from_one_that_does_not_exist():
    workers = (agent("a", "services"),)
    for name, words in (("idle", "no worker listens"), ("gone", "there is no such queue")):
        topology = Topology(
            workers=workers,
            pipelines=(train(queue="services", step_queue=name),),
            queues=("services", "idle"),
        )
        assert check(topology).reasons[0].endswith(words)


def test_steps_that_wait_for_each_other_are_refused():
    steps = (
        Step(name="a", queue="default", after=("b",)),
        Step(name="b", queue="default", after=("a",)),
        Step(name="c", queue="default", after=("a",)),
    )
    verdict = verdict_of(
        [agent("s", "services"), agent("w", "default")],
        Pipeline(name="p", queue="services", steps=steps),
    )
    assert 'step "a" waits for "b" waits for "a"' in verdict.reasons[0]


def test_a_controller_outside_of_the_workers_holds_no_slot():
    assert verdict_of([agent("a", "default")], train(queue=None)).safe


def test_a_controller_that_already_runs_holds_its_worker_only():
    agents = [agent("a", "default"), agent("b", "default")]
    assert verdict_of(agents, train(worker="a")).safe
    other = Pipeline(name="other", queue="default", steps=(Step(name="fit", queue="default"),))
    assert not verdict_of(agents, train(worker="a"), other).safe


def test_large_topologies_are_refused_with_proof_where_there_is_one():
    agents = [agent(f"a{number}", "default") for number in range(100)]
    verdict = verdict_of(agents, train(instances=100))
    assert verdict.exact
    assert "and 96 others" in verdict.reasons[0]
    assert verdict_of(agents, train(instances=99)).safe


def test_a_refusal_without_proof_says_that_it_is_cautious():
    pipelines = [train(instances=150)]
    agents = [agent(f"a{number}", "default") for number in range(150)]
    topology = Topology(workers=tuple(agents), pipelines=tuple(pipelines))
    assert check(topology).exact
    verdict = check(topology, moves=10)
    assert not verdict.safe
    assert not verdict.exact
    assert verdict.reasons[0].startswith("being cautious: ")


def test_sub_pipelines_one_after_another_hold_one_slot_between_them():
    def stages(after):
        return tuple(
            Step(
                name=f"stage-{at}",
                queue="stages",
                after=(f"stage-{at - 1}",) if at and after else (),
                steps=(Step(name="work", queue="stages"),),
            )
            for at in range(40)
        )

    agents = [agent("s", "services"), agent("a", "stages", slots=2)]
    for after in (True, False):
        pipeline = Pipeline(name="p", queue="services", steps=stages(after))
        verdict = verdict_of(agents, pipeline)
        assert (verdict.safe, verdict.exact) == (after, True)


def test_pipelines_that_are_alike_are_told_apart_in_the_reason():
    pipelines = [
        Pipeline(name=name, queue="default", steps=(Step(name=f"of-{name}", queue="default"),))
        for name in ("one", "two", "three")
    ]
    agents = [agent(name, "default") for name in ("a", "b", "c")]
    verdict = verdict_of(agents, *pipelines)
    assert {chain.waiting for chain in verdict.chains} == {
        ("one", "of-one"),
        ("two", "of-two"),
        ("three", "of-three"),
    }
    assert {hold.worker for chain in verdict.chains for hold in chain.blockers} == {"a", "b", "c"}
    assert {hold.task for chain in verdict.chains for hold in chain.holds} == {
        ("one",), ("two",), ("three",)
    }  # fmt: skip


@pytest.mark.parametrize(
    "build",
    [
        lambda: agent("", "default"),
        lambda: agent("a", "default", slots=-1),
        lambda: train(instances=0),
        lambda: Topology(workers=(agent("a", "q"), agent("a", "q")), pipelines=()),
        lambda: Topology(workers=(), pipelines=(train(), train())),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(build):
    with pytest.raises(TopologyError, match="expected"):
        build()


def test_a_step_after_an_unknown_one_gets_the_nearest_name():
    with pytest.raises(UnknownNameError, match="did you mean 'prepare'"):
        Pipeline(
            name="p",
            queue="q",
            steps=(Step(name="prepare", queue="q"), Step(name="b", queue="q", after=("prepar",))),
        )


def test_a_worker_without_slots_serves_nothing():
    worker = Worker(name="idle", queues=("q",), slots=0)
    pipeline = Pipeline(name="p", queue=None, steps=(Step(name="s", queue="q"),))
    verdict = check(Topology(workers=(worker,), pipelines=(pipeline,)))
    assert [chain.kind for chain in verdict.chains] == [ChainKind.UNSERVED]
    second = Worker(name="busy", queues=("q",), slots=1)
    assert check(Topology(workers=(worker, second), pipelines=(pipeline,))).safe
