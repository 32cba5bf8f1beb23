"""The check on a live server: what is asked, what is counted, and what a bad answer comes to."""

import datetime as dt
import json

import pytest

pytest.importorskip("clearml")

from tests.support.clearml_double.server import ACCESS_KEY, SECRET_KEY, ApiDouble

from clearml_ext._api import Client
from clearml_ext.errors import ServerError
from clearml_ext.explain import Cause, explain, family, stop_children
from clearml_ext.fixes import FixKind
from clearml_ext.plans import Node, Plan, plan_of_task
from clearml_ext.preflight import preflight
from clearml_ext.results import Answer
from clearml_ext.settings import ClearmlSettings
from clearml_ext.snapshot import take_snapshot
from clearml_ext.watchdog import Watch
from mlops_ext.errors import MlopsExtError

SETTINGS = ClearmlSettings(timeout_s=3)


@pytest.fixture
def double():
    with ApiDouble(["default", "services", "gpu"]) as double:
        yield double


def client_of(double, secret=SECRET_KEY):
    return Client(double.url, key=ACCESS_KEY, secret=secret, timeout_s=SETTINGS.timeout_s)


def add_worker(double, name, *queues, age_s=0, task=None, **more):
    numbers = [n for q in queues for n, row in double.store.queues.items() if row["name"] == q]
    double.store.workers_register({"worker": name, "queues": numbers, **more})
    worker = double.store.workers[name]
    worker["last_activity_time"] -= dt.timedelta(seconds=age_s)
    worker["task_id"] = task


def add_controller(double, name, steps, *, queue=None, status="created", worker=None, **more):
    """A controller's task as the SDK leaves it: steps are name → queue or (queue, base task)."""
    dag = {}
    for step, where in steps.items():
        step_queue, base = where if isinstance(where, tuple) else (where, None)
        dag[step] = {"queue": step_queue, "parents": [], "base_task_id": base, "executed": None}
    number = double.store.tasks_create(
        {
            "name": name,
            "type": "controller",
            "system_tags": ["pipeline"],
            "configuration": {"Pipeline": {"name": "Pipeline", "value": json.dumps(dag)}},
            **more,
        }
    )["id"]
    if queue is not None:
        double.store.tasks_enqueue({"task": number, "queue_name": queue})
    if worker is not None:
        double.store.take_out(number)
        double.store.tasks[number]["status"] = "in_progress"
        double.store.workers[worker]["task_id"] = number
    else:
        double.store.tasks[number]["status"] = "queued" if queue else status
    return number


def plan(*queues, name="nightly"):
    nodes = tuple(Node(name=f"step-{at}", queue=queue) for at, queue in enumerate(queues))
    return Plan(name=name, nodes=nodes)


def check(double, *queues, controller="services", settings=SETTINGS, **more):
    return preflight(plan(*queues), controller, settings, client=client_of(double), **more)


def test_separate_fresh_agents_are_safe(double):
    add_worker(double, "a1", "services")
    add_worker(double, "a2", "default")
    assert check(double, "default").answer is Answer.SAFE


def test_three_requests_are_enough_however_many_workers_there_are(double):
    for number in range(50):
        add_worker(double, f"a{number}", "services" if number % 2 else "default")
    running = add_controller(double, "other", {"x": "default"}, queue="services", worker="a1")
    client = client_of(double)
    result = preflight(plan("default"), "services", SETTINGS, client=client)
    assert result.answer is Answer.SAFE
    assert client.calls == ["queues.get_all_ex", "workers.get_all", "tasks.get_all"]
    assert running in double.calls[-1][1]["id"]


def test_one_agent_on_both_queues_is_refused_with_the_command_that_mends_it(double):
    add_worker(double, "agent-1", "services", "default")
    result = check(double, "default")
    assert result.answer is Answer.UNSAFE
    assert result.reasons[0] == (
        'nightly: controller holds agent-1 → step "step-0" waits in default → only agent-1 listens'
    )
    assert "clearml-agent daemon --queue default" in " ".join(fix.text for fix in result.fixes)


def test_a_controller_in_its_steps_queue_is_refused_even_where_there_is_room(double):
    for name in ("a", "b", "c"):
        add_worker(double, name, "default")
    add_worker(double, "s", "services")
    result = check(double, "default", controller="default")
    assert "must have a queue that no step uses" in result.reasons[0]
    assert result.fixes[0].controller_queue == "services"


def test_a_sub_pipeline_is_found_by_its_base_task(double):
    add_worker(double, "s", "services", tags=["services-mode"])
    add_worker(double, "a1", "default")
    inner = add_controller(double, "inner", {"trial": "default"})
    outer = Plan(name="outer", nodes=(Node(name="tune", queue="default", base_task=inner),))
    result = preflight(outer, "services", SETTINGS, client=client_of(double))
    assert 'sub-pipeline "tune" holds a1 → step "trial" waits in default' in result.reasons[0]


@pytest.mark.parametrize(("given", "near"), [("defalt", "default"), ("service", "services")])
def test_a_missing_queue_suggests_the_nearest_name(double, given, near):
    add_worker(double, "a1", "services")
    for result in (check(double, given), check(double, "default", controller=given)):
        assert result.answer is Answer.UNSAFE
        assert f"did you mean '{near}'?" in result.reasons[0]


def test_a_queue_that_nobody_watches_is_refused(double):
    add_worker(double, "a1", "services")
    assert "waits in gpu → no worker listens" in check(double, "gpu").reasons[0]


def test_a_dead_agent_that_is_still_listed_does_not_count(double):
    add_worker(double, "a1", "services")
    add_worker(double, "a2", "default", age_s=300)
    result = check(double, "default")
    assert result.answer is Answer.UNSAFE
    assert "a2 is listed for default, but was last seen" in " ".join(result.reasons)


def test_pipelines_that_run_already_are_counted(double):
    for name in ("a1", "a2"):
        add_worker(double, name, "services", "default")
    assert check(double, "default").answer is Answer.SAFE
    add_controller(double, "other", {"x": "default"}, queue="services", worker="a1")
    result = check(double, "default")
    assert result.answer is Answer.UNSAFE
    assert any("also held by other (" in reason for reason in result.reasons)


@pytest.mark.parametrize(
    ("more", "safe"),
    [
        ({}, False),
        ({"tags": ["services-mode"]}, True),
        ({"tags": ["services-mode capacity:2"]}, False),
        ({"tags": ["services-mode capacity:9"]}, True),
        ({"tags": ["capacity:unbounded"]}, True),
    ],
)
def test_declared_capacity_is_believed(double, more, safe):
    add_worker(double, "s", "services", **more)
    add_worker(double, "a1", "default")
    inner = add_controller(double, "inner", {"trial": "default"})
    outer = Plan(name="outer", nodes=(Node(name="tune", queue="services", base_task=inner),))
    result = preflight(outer, "services", SETTINGS, client=client_of(double), instances=2)
    assert (result.answer is Answer.SAFE) is safe


def test_queue_metadata_and_a_file_declare_capacity_too(double, tmp_path):
    add_worker(double, "glue", "gpu")
    number = next(n for n, row in double.store.queues.items() if row["name"] == "gpu")
    entry = {"key": "capacity", "type": "int", "value": "4"}
    double.store.queues_add_or_update_metadata({"queue": number, "metadata": [entry]})
    snapshot = take_snapshot(client_of(double), SETTINGS)
    assert [worker.slots for worker in snapshot.workers] == [4]
    path = tmp_path / "capacity.yaml"
    path.write_text("pipelines: []\nworkers: [{name: glue, queues: [gpu], slots: unbounded}]")
    snapshot = take_snapshot(client_of(double), ClearmlSettings(capacity=path))
    assert [worker.slots for worker in snapshot.workers] == [None]


def test_a_services_agent_is_known_by_its_children(double):
    add_worker(double, "s", "services")
    add_worker(double, "s:service:" + "0" * 32)
    snapshot = take_snapshot(client_of(double), SETTINGS)
    assert [(worker.name, worker.slots) for worker in snapshot.workers] == [("s", None)]


def test_a_malformed_capacity_tag_is_one_clear_line(double):
    add_worker(double, "s", "services", tags=["capacity:many"])
    result = check(double, "default")
    assert result.answer is Answer.UNKNOWN
    assert "tag 'capacity:many' of worker s is 'many'" in result.reasons[0]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (("status", 401, "Unauthorized"), "refuses the credentials (401"),
        (("status", 404, "no such endpoint"), "with 404"),
        (("status", 500, f"boom {SECRET_KEY}"), "with 500"),
        (("raw", b"<html>hello</html>"), "not the ClearML API"),
        (("raw", b'{"data": {"queues": 7}}'), "a form that is not known"),
        (("cut",), "cannot be reached"),
    ],
)
def test_a_server_that_misbehaves_is_one_clear_line_without_secrets(double, fault, words):
    double.faults["queues.get_all_ex"] = fault
    result = check(double, "default")
    assert result.answer is Answer.UNKNOWN
    (line,) = result.reasons
    assert words in line
    assert "\n" not in line
    assert SECRET_KEY not in line


def test_a_slow_server_is_given_up_after_the_timeout(double):
    double.faults["workers.get_all"] = ("slow", 60)
    client = Client(double.url, key=ACCESS_KEY, secret=SECRET_KEY, timeout_s=0.3)
    result = preflight(plan("default"), "services", SETTINGS, client=client)
    assert "did not answer workers.get_all within 0.3 s" in result.reasons[0]


def test_wrong_credentials_and_an_absent_server_are_told_apart(double):
    wrong = client_of(double, secret="no-such-secret")
    result = preflight(plan("default"), "services", SETTINGS, client=wrong)
    assert "refuses the credentials" in result.reasons[0]
    assert "no-such-secret" not in result.reasons[0]
    gone = Client("http://key:pw@127.0.0.1:9", key="k", secret="s", timeout_s=1)
    with pytest.raises(ServerError, match="cannot be reached") as caught:
        gone.call("queues.get_all_ex")
    assert "pw@" not in str(caught.value)


def test_a_queue_that_is_a_parameter_of_the_pipeline_is_filled_in(double):
    number = add_controller(
        double,
        "parametrised",
        {"x": "${pipeline.where}", "y": None},
        hyperparams={
            "Args": {"where": {"section": "Args", "name": "where", "value": "gpu"}},
            "pipeline": {"default_queue": {"value": "default"}},
        },
    )
    found = plan_of_task(double.store.tasks[number])
    assert [node.queue for node in found.nodes] == ["gpu", "default"]
    double.store.tasks[number]["hyperparams"] = {}
    with pytest.raises(MlopsExtError, match="where has no value"):
        plan_of_task(double.store.tasks[number])


def put_step(double, parent, queue):
    number = double.store.tasks_create({"name": "train", "type": "training", "parent": parent})[
        "id"
    ]
    if queue:
        double.store.tasks_enqueue({"task": number, "queue_name": queue})
    return number


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
    _, (child,) = family(client, own)
    assert explain(child, take_snapshot(client, SETTINGS), {own}).cause is cause


def test_a_deadlocked_step_is_explained_and_moved_to_a_free_agent(double):
    add_worker(double, "a1", "services", "default")
    add_worker(double, "a2", "gpu")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, "default")
    told, now = [], [0.0]
    settings = ClearmlSettings(pending_s=60, move=True)
    watch = Watch(client_of(double), own, settings, tell=told.append, clock=lambda: now[0])
    assert watch.look()
    assert not told
    now[0] = 61.0
    assert watch.look()
    assert 'a1 is held by controller "nightly"' in told[0]
    assert told[1] == 'step "train" was moved from default to gpu'
    gpu = next(row for row in double.store.queues.values() if row["name"] == "gpu")
    assert [entry["task"] for entry in gpu["entries"]] == [step]


def test_a_step_that_could_not_be_enqueued_is_failed(double):
    add_worker(double, "a1", "services")
    own = add_controller(double, "nightly", {}, queue="services", worker="a1")
    step = put_step(double, own, None)
    watch = Watch(client_of(double), own, SETTINGS, tell=lambda text: None)
    for _ in range(10):
        watch.look()
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
    dequeue = double.store.tasks_dequeue

    def too_late(request):
        if request["task"] == taken:  # an agent was faster, and it has ended since
            double.store.tasks[taken]["status"] = "completed"
        return dequeue(request)

    double.store.tasks_dequeue = too_late
    double.store.tasks_stop = double.store.tasks_stopped
    assert stop_children(client_of(double), own) == ["train"]
    assert double.store.tasks[taken]["status"] == "completed"
    assert double.store.tasks[waiting]["status"] == "stopped"


@pytest.mark.parametrize("scrolls", [True, False])
def test_queues_beyond_the_first_page_are_known(double, scrolls):
    for number in range(1200):
        double.store.queues_create({"name": f"queue-{number}"})
    add_worker(double, "s", "services")
    add_worker(double, "a1", "queue-1199")
    if not scrolls:
        plain = double.store.queues_get_all_ex
        old = ("page", "page_size", "search_hidden")
        double.store.queues_get_all_ex = lambda request: plain(
            {key: value for key, value in request.items() if key in old}
        )
    assert check(double, "queue-1199").answer is Answer.SAFE
    assert double.count("queues.get_all_ex") == (1 if scrolls else 3)


def test_a_refusal_reroutes_the_controller_first(double):
    add_worker(double, "s", "services")
    add_worker(double, "a1", "default")
    result = check(double, "default", controller="default")
    assert result.fixes[0].kind is FixKind.CONTROLLER_QUEUE
