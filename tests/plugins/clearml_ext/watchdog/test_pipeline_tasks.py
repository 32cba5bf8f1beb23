"""The steps of a pipeline that runs: explained, moved, stopped, and told apart from clones."""

import os
import threading
from typing import ClassVar

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
from clearml_ext.watchdog.explain import explain
from clearml_ext.watchdog.reaper import Reaper
from clearml_ext.watchdog.watchdog import PipelineMonitor, run_watchdog

SETTINGS = ClearmlSettings(timeout_s=120)


@pytest.mark.parametrize(
    ("why", "arrange"),
    [
        ("no agent listens to it", lambda double: None),
        (
            "its agents are dead: a2",
            lambda double: add_worker(double, "a2", "default", age_s=400),
        ),
        ("with 0 before it: a2 is free", lambda double: add_worker(double, "a2", "default")),
        (
            "with 0 before it; busy with other tasks: a2",
            lambda double: add_worker(double, "a2", "default", task=put_step(double, None, None)),
        ),
    ],
)
def test_a_step_that_waits_is_explained(double, why, arrange):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    put_step(double, own, "default")
    arrange(double)
    client = client_of(double)
    _, (child,) = pipeline_tasks(client, own)
    found = explain(child, take_snapshot(client, SETTINGS), {own})
    assert why in found.text
    assert found.stuck is ("agent" in why)


def test_a_deadlocked_step_is_explained_and_moved_to_a_free_agent(double):
    spare = double.store.queues_create({"name": "spare"})["id"]
    add_worker(double, "a1", "services", "default")
    add_worker(double, "gpu-box", "gpu")
    add_worker(double, "a2", "spare")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, "default")
    told, now = [], [0.0]
    settings = ClearmlSettings(pending_s=60, move=True)
    monitor = PipelineMonitor(
        client_of(double), own, settings, acts=True, notify=told.append, clock=lambda: now[0]
    )
    assert monitor.poll()
    assert not told
    now[0] = 61.0
    assert monitor.poll()
    assert 'a1 is held by controller "nightly"' in told[0]
    assert told[1] == 'step "train" was moved from default to spare'
    entries = double.store.queues[spare]["entries"]
    assert [entry["task"] for entry in entries] == [step]


def watching(double, own, *, acts=True, **settings):
    """A monitor, what it says, and how to let time pass."""
    told, now = [], [0.0]
    monitor = PipelineMonitor(
        client_of(double),
        own,
        ClearmlSettings(timeout_s=120, **settings),
        acts=acts,
        notify=told.append,
        clock=lambda: now[0],
    )
    assert monitor.poll()

    def later(seconds=1000.0):
        now[0] += seconds
        return monitor.poll()

    return told, later


def set_queue_of_step(double, own, queue):
    state = double.store.tasks[own]["configuration"]["Pipeline"]
    state["value"] = state["value"].replace('"queue": null', f'"queue": "{queue}"')


@pytest.mark.parametrize("acts", [True, False])
def test_a_step_whose_queue_does_not_exist_is_failed_only_by_who_may_act(double, acts):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, None)
    set_queue_of_step(double, own, "nowhere")
    told, later = watching(double, own, acts=acts)
    assert later()
    assert told == ['step "train" could not be enqueued: there is no queue nowhere']
    assert double.store.tasks[step]["status"] == ("failed" if acts else "created")


def test_a_step_that_is_in_no_queue_for_another_reason_is_left_alone(double):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, None)  # its callback waits for an approval
    moved = put_step(double, own, "default", name="moved")
    set_queue_of_step(double, own, "default")
    told, later = watching(double, own)
    double.store.tasks_dequeue({"task": moved})  # somebody takes it elsewhere
    for _ in range(10):
        assert later()
    assert not told
    statuses = [double.store.tasks[each]["status"] for each in (step, moved)]
    assert statuses == ["created", "created"]


def end_of(double, own, how):
    task = double.store.tasks[own]
    if how == "abort under way":
        task["status_message"] = "stopping"
    elif how == "abort":
        task.update(status="stopped", status_reason="task was stopped by tasks.stop")
    elif how == "abort of one without an agent":
        task.update(status="stopped", status_message="Stopped by jane")
    elif how == "non-responsive":
        text = "Forced stop (non-responsive)"
        task.update(status="stopped", status_message=text, status_reason=text)
    else:
        task.update(status=how)


ABORTS = ["abort under way", "abort", "abort of one without an agent"]


@pytest.mark.parametrize("acts", [True, False])
@pytest.mark.parametrize("how", [*ABORTS, "non-responsive", "completed", "failed"])
def test_steps_are_stopped_only_with_a_pipeline_that_somebody_aborted(double, how, acts):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, "default")
    told, later = watching(double, own, acts=acts)
    end_of(double, own, how)
    assert not later()
    stopped = acts and how in ABORTS
    assert double.store.tasks[step]["status"] == ("stopped" if stopped else "queued")
    assert bool(told) is stopped


def test_a_step_that_is_run_again_by_hand_after_the_abort_is_left_alone(double):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, "default")
    end_of(double, own, "abort")
    monitor = PipelineMonitor(client_of(double), own, SETTINGS, acts=True, notify=print)
    assert not monitor.poll()
    assert double.store.tasks[step]["status"] == "queued"


def test_a_draft_step_is_never_touched(double):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, None)
    set_queue_of_step(double, own, "nowhere")
    state = double.store.tasks[own]["configuration"]["Pipeline"]
    state["value"] = state["value"].replace('"parents"', '"draft": true, "parents"')
    told, later = watching(double, own)
    assert later()
    end_of(double, own, "abort")
    assert not later()
    assert not told
    assert double.store.tasks[step]["status"] == "created"


def test_a_task_that_is_queued_but_in_no_queue_is_told_as_one(double):
    add_worker(double, "a1", "services")
    add_worker(double, "a2", "default")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, "default")
    double.store.take_out(step)
    told, later = watching(double, own)
    assert later()
    assert told == [
        'step "train" is queued for default, but is not in it: reset it, and enqueue it again'
    ]
    assert double.store.tasks[step]["status"] == "queued"


@pytest.mark.parametrize(("capacity", "why"), [(2, "a is free"), (1, "busy with other tasks: a")])
def test_what_is_explained_counts_slots_as_the_check_does(double, capacity, why):
    add_worker(double, "s", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="s")
    busy = put_step(double, None, None)
    add_worker(double, "a", "default", task=busy, tags=[f"capacity:{capacity}"])
    put_step(double, own, "default")
    client = client_of(double)
    _, (child,) = pipeline_tasks(client, own)
    found = explain(child, take_snapshot(client, SETTINGS), {own})
    assert found.text.endswith(why)


def test_the_watchdog_s_thread_survives_anything_and_says_so_once(caplog):
    class Pipeline:
        _stop_event = threading.Event()
        _nodes: ClassVar = {}

    polls = []

    class Monitor:
        settings = ClearmlSettings(interval_s=0.001)

        def poll(self):
            polls.append(None)
            if len(polls) == 5:
                Pipeline._stop_event.set()
            raise KeyError("entries")

    run_watchdog(Pipeline(), Monitor())
    assert len(polls) == 5
    assert len(caplog.records) == 1


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
    monitor = PipelineMonitor(client_of(double), own, SETTINGS, acts=True, notify=told.append)
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
    double.store.tasks[own]["status_message"] = "stopping"
    reaper = Reaper()
    reaper.start(client_of(double), own)
    reaper.notify(late)
    os.close(reaper._pipe)  # as the end of the controller's process does
    assert double.wait_until(lambda store: store.tasks[late]["status"] == "stopped", 600)
    assert double.store.tasks[other]["status"] == "created"
