"""The steps of a pipeline that runs: explained, moved, stopped, and told apart from clones."""

import os

import pytest

pytest.importorskip("clearml")

from tests.doubles.clearml.arrange import add_controller, add_worker, client_of, put_step

from clearml_ext.check.plans import Node, Plan, plan_of_task
from clearml_ext.check.preflight import check_live
from clearml_ext.check.results import Answer
from clearml_ext.errors import ServerError
from clearml_ext.server.snapshot import take_snapshot
from clearml_ext.server.tasks import move_task, pipeline_tasks, stop_children
from clearml_ext.settings import ClearmlSettings
from clearml_ext.watchdog.explain import Cause, explain
from clearml_ext.watchdog.reaper import Reaper
from clearml_ext.watchdog.watchdog import PipelineMonitor

SETTINGS = ClearmlSettings(timeout_s=3)


@pytest.mark.parametrize(
    ("cause", "arrange"),
    [
        (Cause.UNWATCHED, lambda double: None),
        (Cause.DEAD, lambda double: add_worker(double, "a2", "default", age_s=400)),
        (Cause.ABOUT_TO_START, lambda double: add_worker(double, "a2", "default")),
        (
            Cause.BUSY,
            lambda double: add_worker(double, "a2", "default", task=put_step(double, None, None)),
        ),
    ],
)
def test_a_step_that_waits_is_explained(double, cause, arrange):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    put_step(double, own, "default")
    arrange(double)
    client = client_of(double)
    _, (child,) = pipeline_tasks(client, own)
    assert explain(child, take_snapshot(client, SETTINGS), {own}).cause is cause


def test_a_deadlocked_step_is_explained_and_moved_to_a_free_agent(double):
    add_worker(double, "a1", "services", "default")
    add_worker(double, "a2", "gpu")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, "default")
    told, now = [], [0.0]
    settings = ClearmlSettings(pending_s=60, move=True)
    monitor = PipelineMonitor(
        client_of(double), own, settings, notify=told.append, clock=lambda: now[0]
    )
    assert monitor.poll()
    assert not told
    now[0] = 61.0
    assert monitor.poll()
    assert 'a1 is held by controller "nightly"' in told[0]
    assert told[1] == 'step "train" was moved from default to gpu'
    gpu = next(row for row in double.store.queues.values() if row["name"] == "gpu")
    assert [entry["task"] for entry in gpu["entries"]] == [step]


def test_a_step_that_could_not_be_enqueued_is_failed(double):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, None)
    monitor = PipelineMonitor(client_of(double), own, SETTINGS, notify=lambda text: None)
    for _ in range(10):
        monitor.poll()
    assert double.store.tasks[step]["status"] == "failed"


def test_an_abort_reaches_the_steps_and_their_steps(double):
    add_worker(double, "a1", "services")
    add_worker(double, "a2", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    inner = add_controller(double, "inner", {}, queue="services", worker="a2", parent=own)
    step = put_step(double, inner, "default")
    assert stop_children(client_of(double), own) == ["inner", "train"]
    assert double.store.tasks[step]["status"] == "stopped"
    assert not any(row["entries"] for row in double.store.queues.values())


def test_an_abort_reaches_the_other_steps_where_the_server_refuses_one(double):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    taken, waiting = put_step(double, own, "default"), put_step(double, own, "default")
    remove = double.store.queues_remove_task

    def too_late(request):
        if request["task"] == taken:  # an agent was faster, and it has ended since
            double.store.take_out(taken)
            double.store.tasks[taken]["status"] = "completed"
        return remove(request)

    double.store.queues_remove_task = too_late
    assert stop_children(client_of(double), own) == ["train"]
    assert double.store.tasks[taken]["status"] == "completed"
    assert double.store.tasks[waiting]["status"] == "stopped"


@pytest.mark.parametrize("rows", [b"[5]", b"[{}]", b"[null]", b"7"])
def test_rows_that_are_no_tasks_are_one_clear_error(double, rows):
    double.faults["tasks.get_all"] = ("raw", b'{"data": {"tasks": ' + rows + b"}}")
    with pytest.raises(ServerError, match="a form that is not known"):
        pipeline_tasks(client_of(double), "0" * 32)


def run_with_clones(double):
    """A run that waits for its step, and a draft and a run that were cloned from it and its step."""
    add_worker(double, "a1", "services")
    add_worker(double, "a2", "services")
    own = add_controller(double, "nightly", {"fit": "default"}, queue="services", worker="a1")
    step = put_step(double, own, "default")
    clones = []
    for source in (own, step):
        for queue in (None, "gpu"):
            clone = double.store.tasks_clone({"task": source, "new_task_name": "Clone"})["id"]
            assert double.store.tasks[clone]["parent"] == own
            if queue:
                double.store.tasks_enqueue({"task": clone, "queue_name": queue})
            clones.append(clone)
    return own, step, clones


def test_an_abort_leaves_clones_of_the_pipeline_and_of_its_steps_alone(double):
    own, step, clones = run_with_clones(double)
    assert stop_children(client_of(double), own) == ["train"]
    assert double.store.tasks[step]["status"] == "stopped"
    kept = [double.store.tasks[clone]["status"] for clone in clones]
    assert kept == ["created", "queued", "created", "queued"]


def test_the_watchdog_does_not_take_a_cloned_draft_for_a_step_that_was_not_enqueued(double):
    own, _, clones = run_with_clones(double)
    told = []
    monitor = PipelineMonitor(client_of(double), own, SETTINGS, notify=told.append)
    for _ in range(10):
        assert monitor.poll()
    assert not told
    assert [double.store.tasks[clone]["status"] for clone in clones[::2]] == ["created", "created"]


def test_a_step_whose_task_the_controller_has_not_written_down_is_stopped_too(double):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {"fit": "default"}, queue="services", worker="a1")
    step = double.store.tasks_create({"name": "fit", "type": "training", "parent": own})["id"]
    assert stop_children(client_of(double), own) == ["fit"]
    assert double.store.tasks[step]["status"] == "stopped"


def test_a_clone_that_runs_beside_the_pipeline_it_was_cloned_from_is_counted(double):
    for name in ("s1", "s2", "a1", "a2", "a3"):
        add_worker(double, name, "services" if name.startswith("s") else "default")
    inner = add_controller(double, "inner", {"trial": "default"})
    own = add_controller(double, "nightly", {"tune": ("default", inner)}, queue="services",
                         worker="s1")  # fmt: skip
    fresh = Plan(name="new", nodes=(Node(name="tune", queue="default", base_task=inner),))
    client = client_of(double)
    assert check_live(fresh, None, SETTINGS, client=client).answer is Answer.SAFE
    clone = double.store.tasks_clone({"task": own, "new_task_name": "Clone"})["id"]
    double.store.tasks_enqueue({"task": clone, "queue_name": "services"})
    result = check_live(fresh, None, SETTINGS, client=client)
    assert result.answer is Answer.UNSAFE
    assert any("Clone (" in reason for reason in result.reasons)


def test_a_clone_of_a_run_that_ended_is_checked_from_its_first_step(double):
    add_worker(double, "a1", "services", "default")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    put_step(double, own, None)
    state = double.store.tasks[own]["configuration"]["Pipeline"]
    state["value"] = state["value"].replace('"job_id"', '"queue": "default", "executed"')
    clone = double.store.tasks_clone({"task": own})["id"]
    documents = double.store.tasks
    assert [node.ended for node in plan_of_task(documents[own]).nodes] == [True]
    (step,) = plan_of_task(documents[clone]).nodes
    assert not step.ended
    assert step.job is None


def test_a_task_that_an_agent_has_just_taken_is_not_moved(double):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, "default")
    client = client_of(double)
    snapshot = take_snapshot(client, SETTINGS)
    default = next(n for n, row in double.store.queues.items() if row["name"] == "default")
    double.store.queues_get_next_task({"queue": default})
    double.store.tasks_started({"task": step, "force": True})
    assert not move_task(client, snapshot, step, "default", "gpu")
    assert double.store.tasks[step]["status"] == "in_progress"
    assert not any(row["entries"] for row in double.store.queues.values())


def test_a_task_that_cannot_be_moved_waits_where_it_was(double):
    own = add_controller(double, "nightly", {})
    step = put_step(double, own, "default")
    client = client_of(double)
    snapshot = take_snapshot(client, SETTINGS)
    double.faults["tasks.enqueue"] = ("status", 500, "boom")
    with pytest.raises(ServerError):
        move_task(client, snapshot, step, "default", "gpu")
    default = next(row for row in double.store.queues.values() if row["name"] == "default")
    assert [entry["task"] for entry in default["entries"]] == [step]


def test_the_process_that_outlives_a_controller_stops_what_it_was_told_of(double):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    late, other = (
        double.store.tasks_create({"name": name, "type": "training", "parent": own})["id"]
        for name in ("late", "other")
    )
    reaper = Reaper()
    reaper.start(client_of(double), own)
    reaper.notify(late)
    os.close(reaper._pipe)  # as the end of the controller's process does
    assert double.wait_until(lambda store: store.tasks[late]["status"] == "stopped", 100)
    assert double.store.tasks[other]["status"] == "created"
