"""The check on a live server: what is asked, what is counted, and what a bad answer comes to."""

import itertools
import json

import pytest

pytest.importorskip("clearml")

from tests.doubles.clearml.arrange import add_controller, add_worker, client_of
from tests.doubles.clearml.server import ACCESS_KEY, SECRET_KEY

from clearml_ext.check.fixes import FixKind
from clearml_ext.check.plans import Node, Plan, plan_of_task
from clearml_ext.check.preflight import check_enqueue, check_live
from clearml_ext.check.results import Answer
from clearml_ext.check.status import workspace_status
from clearml_ext.check.targets import launch
from clearml_ext.errors import ServerError
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import take_snapshot
from clearml_ext.settings import ClearmlSettings
from clearml_ext.watchdog.live import watch_pipeline
from clearml_ext.watchdog.watchdog import PipelineMonitor
from mlops_ext.errors import MlopsExtError

SETTINGS = ClearmlSettings(timeout_s=120)


def plan(*queues, name="nightly"):
    nodes = tuple(Node(name=f"step-{at}", queue=queue) for at, queue in enumerate(queues))
    return Plan(name=name, nodes=nodes)


def check(double, *queues, controller="services", settings=SETTINGS, **more):
    return check_live(plan(*queues), controller, settings, client=client_of(double), **more)


def test_separate_fresh_agents_are_safe(double):
    add_worker(double, "a1", "services")
    add_worker(double, "a2", "default")
    assert check(double, "default").answer is Answer.SAFE


def test_three_requests_are_enough_however_many_workers_there_are(double):
    for number in range(50):
        add_worker(double, f"a{number}", "services" if number % 2 else "default")
    running = add_controller(double, "other", {"x": "default"}, queue="services", worker="a1")
    client = client_of(double)
    result = check_live(plan("default"), "services", SETTINGS, client=client)
    assert result.answer is Answer.SAFE
    asked = [endpoint for endpoint, _ in double.calls if endpoint != "auth.login"]
    assert asked == ["queues.get_all_ex", "workers.get_all", "tasks.get_all"]
    assert running in double.calls[-1][1]["id"]


def test_one_agent_on_both_queues_is_refused_with_the_command_that_fixes_it(double):
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
    result = check_live(outer, "services", SETTINGS, client=client_of(double))
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
    result = check_live(outer, "services", SETTINGS, client=client_of(double), instances=2)
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


def test_a_malformed_capacity_tag_is_one_clear_line_and_refuses_nobody(double):
    add_worker(double, "s", "services", tags=["capacity:many"])
    add_worker(double, "a", "default")
    result = check(double, "default")
    assert result.answer is Answer.SAFE
    (note,) = result.notes
    assert "tag 'capacity:many' of worker s is 'many'" in note
    assert "it counts as one slot" in note


def test_somebody_else_s_stuck_run_is_a_note(double):
    add_worker(double, "s", "services", tags=["services-mode"])
    add_worker(double, "a", "default")
    add_controller(double, "theirs", {"x": "gpu"}, queue="services", worker="s")
    result = check(double, "default")
    assert result.answer is Answer.SAFE
    assert any("theirs" in note and "waits in gpu" in note for note in result.notes)


def test_somebody_else_s_run_that_waits_and_would_be_stuck_is_a_note(double):
    add_worker(double, "s1", "services")
    add_worker(double, "s2", "services")
    add_worker(double, "a", "default")
    add_controller(double, "theirs", {"x": "gpu"}, queue="services")
    result = check(double, "default")
    assert result.answer is Answer.SAFE
    assert any("theirs" in note for note in result.notes)


def test_the_agent_that_somebody_else_s_stuck_run_holds_does_not_count(double):
    add_worker(double, "s", "services", tags=["services-mode"])
    add_worker(double, "a", "default")
    add_controller(double, "theirs", {"x": "gpu"}, queue="default", worker="a")
    result = check(double, "default")
    assert result.answer is Answer.UNSAFE
    assert 'step "step-0" waits in default' in result.reasons[0]


def test_two_pipelines_of_others_that_can_deadlock_refuse_nobody(double):
    add_worker(double, "s", "services", tags=["services-mode"])
    add_worker(double, "a", "default")
    for name in ("b1", "b2"):
        add_worker(double, name, "shared")
    for name in ("one", "two"):
        add_controller(double, name, {"x": "shared"}, queue="shared")
    assert check(double, "default").answer is Answer.SAFE
    assert check(double, "shared").answer is Answer.UNSAFE


def put_task(double, kind, worker=None, queue=None, name="other", **more):
    number = double.store.tasks_create({"name": name, "type": kind, **more})["id"]
    if worker is not None:
        double.store.tasks[number]["status"] = "in_progress"
        double.store.workers[worker]["task_id"] = number
    if queue is not None:
        double.store.tasks_enqueue({"task": number, "queue_name": queue})
    return number


JOBS = '[{"name": "every hour", "queue": "default"}]'


@pytest.mark.parametrize(
    "more",
    [
        {"kind": "service", "configuration": {"schedule": {"name": "schedule", "value": JOBS}}},
        {"kind": "service", "configuration": {"models": {"name": "models", "value": JOBS}}},
        {"kind": "optimizer",
         "hyperparams": {"General": {"opt/execution_queue": {"value": "default"}}}},
        {"kind": "training", "tags": ["waits-for:default"]},
        {"kind": "training", "configuration": {"Pipeline": {
            "name": "Pipeline", "value": '{"x": {"queue": "default", "parents": []}}'}}},
        {"kind": "monitor"},
    ],
)  # fmt: skip
def test_what_holds_an_agent_and_waits_is_seen_whatever_it_is(double, more):
    add_worker(double, "s", "services", tags=["services-mode"])
    add_worker(double, "a", "default")
    assert check(double, "default").answer is Answer.SAFE
    put_task(double, more.pop("kind"), worker="a", **more)
    assert check(double, "default").answer is Answer.UNSAFE


def test_a_task_whose_children_wait_holds_its_agent_but_not_one_that_was_cloned(double):
    add_worker(double, "s", "services", tags=["services-mode"])
    add_worker(double, "a", "default")
    parent = put_task(double, "training", worker="a", script={"entry_point": "search.py"})
    clone = double.store.tasks_clone({"task": parent})["id"]
    double.store.tasks_enqueue({"task": clone, "queue_name": "default"})
    assert check(double, "default").answer is Answer.SAFE
    child = put_task(double, "training", script={"entry_point": "trial.py"}, parent=parent)
    double.store.tasks_enqueue({"task": child, "queue_name": "default"})
    assert check(double, "default").answer is Answer.UNSAFE


def test_a_hosted_autoscaler_takes_no_slot_and_its_queue_is_declared(double):
    add_worker(double, "s", "services")
    add_worker(double, "hosted-app-1")  # runs the application, and serves no queue of the workspace
    put_task(double, "application", worker="hosted-app-1", name="GCP autoscaler")
    assert "waits in gpu → no worker listens" in check(double, "gpu").reasons[0]
    number = next(n for n, row in double.store.queues.items() if row["name"] == "gpu")
    double.store.queues[number]["tags"] = ["autoscaled:4"]
    assert check(double, "gpu").answer is Answer.SAFE


def test_a_plain_task_that_runs_ends_and_refuses_nobody(double):
    add_worker(double, "s", "services", tags=["services-mode"])
    add_worker(double, "a", "default")
    put_task(double, "training", worker="a")
    assert check(double, "default").answer is Answer.SAFE


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
    double.faults["*"] = ("slow", 600)
    client = Client(double.url, key=ACCESS_KEY, secret=SECRET_KEY, timeout_s=0.3)
    result = check_live(plan("default"), "services", SETTINGS, client=client)
    assert "did not answer auth.login within 0.3 s" in result.reasons[0]


@pytest.mark.parametrize("endpoint", ["queues.get_all_ex", "workers.get_all", "tasks.get_all"])
def test_a_script_is_not_started_where_the_server_misbehaves(
    double, endpoint, tmp_path, monkeypatch
):
    script, ran = tmp_path / "pipeline.py", tmp_path / "ran"
    script.write_text(f"open({str(ran)!r}, 'w')")
    monkeypatch.setenv("CLEARML_API_HOST", double.url)
    monkeypatch.setenv("CLEARML_API_ACCESS_KEY", ACCESS_KEY)
    monkeypatch.setenv("CLEARML_API_SECRET_KEY", SECRET_KEY)
    double.faults[endpoint] = ("raw", b'{"data": {"tasks": [5], "queues": [5], "workers": [5]}}')
    with pytest.raises(ServerError, match="a form that is not known"):
        launch(str(script), (), {})
    assert not ran.exists()
    del double.faults[endpoint]
    assert launch(str(script), (), {}) == 0
    assert ran.exists()


def test_wrong_credentials_and_an_absent_server_are_told_apart(double):
    wrong = client_of(double, secret="no-such-secret")
    result = check_live(plan("default"), "services", SETTINGS, client=wrong)
    assert "refuses the credentials" in result.reasons[0]
    assert "no-such-secret" not in result.reasons[0]
    for address in (
        "http://key:pw@127.0.0.1:9",
        "key:pw@127.0.0.1",
        "pw@127.0.0.1",
        "host?k=pw",
        "host/#pw",
    ):
        gone = Client(address, key="k", secret="s", timeout_s=120)
        with pytest.raises(ServerError, match="cannot be reached") as caught:
            gone.call("queues.get_all_ex")
        assert "pw" not in str(caught.value)


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


def declare(double, queue, key, value):
    number = next(n for n, row in double.store.queues.items() if row["name"] == queue)
    entry = {"key": key, "type": "str", "value": value}
    double.store.queues_add_or_update_metadata({"queue": number, "metadata": [entry]})


def test_an_autoscaled_queue_without_a_machine_right_now_is_served(double):
    add_worker(double, "s", "services")
    assert check(double, "gpu").answer is Answer.UNSAFE
    declare(double, "gpu", "autoscaled", "2")
    assert check(double, "gpu").answer is Answer.SAFE
    declare(double, "gpu", "autoscaled", "0")
    assert check(double, "gpu").answer is Answer.UNSAFE


def test_no_fix_sends_a_controller_or_plain_steps_to_a_gpu_machine(double):
    add_worker(double, "agent-1", "services", "default")
    add_worker(double, "a100-box", "gpu")
    fixes = check(double, "default").fixes
    assert fixes
    assert "gpu" not in {fix.controller_queue for fix in fixes}
    assert not any(fix.queues for fix in fixes)


def test_a_missing_services_queue_gets_the_command_that_makes_it(double):
    add_worker(double, "a", "default")
    for number, row in list(double.store.queues.items()):
        if row["name"] == "services":
            del double.store.queues[number]
    result = check(double, "default")
    assert result.answer is Answer.UNSAFE
    assert "--services-mode --queue services --create-queue" in result.remedies[0]


def test_watching_with_wrong_credentials_ends_at_the_first_answer(double, monkeypatch):
    monkeypatch.setenv("CLEARML_API_HOST", double.url)
    monkeypatch.setenv("CLEARML_API_ACCESS_KEY", ACCESS_KEY)
    monkeypatch.setenv("CLEARML_API_SECRET_KEY", "wrong")
    with pytest.raises(ServerError, match="refuses the credentials"):
        watch_pipeline("0" * 32, interval_s=0.001)
    assert double.count("auth.login") == 1
    monkeypatch.setenv("CLEARML_API_SECRET_KEY", SECRET_KEY)
    with pytest.raises(MlopsExtError, match="an id that"):
        watch_pipeline("0" * 32, interval_s=0.001)


def test_a_refusal_reroutes_the_controller_first(double):
    add_worker(double, "s", "services")
    add_worker(double, "a1", "default")
    result = check(double, "default", controller="default")
    assert result.fixes[0].kind is FixKind.CONTROLLER_QUEUE


def put_tag(double, queue, *tags):
    row = next(row for row in double.store.queues.values() if row["name"] == queue)
    row["tags"] = list(tags)


@pytest.mark.parametrize(
    ("said", "slots"),
    [("4", 4), ("0-3", 3), ("min 0, max 12", 12), ("min 2", 2), ("unbounded", None)],
)
def test_an_autoscaled_queue_may_be_declared_by_a_tag_or_metadata(double, said, slots):
    put_tag(double, "gpu", f"autoscaled:{said}")
    declare(double, "default", "autoscaled", said)
    found = {each.name: each.slots for each in take_snapshot(client_of(double), SETTINGS).workers}
    assert found == {"autoscaler of gpu": slots, "autoscaler of default": slots}


def test_machines_that_an_autoscaler_has_started_are_some_of_its_most(double):
    declare(double, "gpu", "autoscaled", "3")
    add_worker(double, "dynamic:gpu:g4dn:i-1", "gpu")
    add_worker(double, "static", "gpu", "default")
    found = {each.name: each.slots for each in take_snapshot(client_of(double), SETTINGS).workers}
    assert found == {"dynamic:gpu:g4dn:i-1": 1, "static": 1, "autoscaler of gpu": 2}


def test_an_autoscaler_is_known_by_what_its_task_keeps_while_it_runs(double):
    """As the SDK's example of an AWS autoscaler keeps it."""
    add_worker(double, "s", "services", tags=["services-mode"])
    kept = {"queues": {"gpu": [["g4", 3], ["g5", 2]]}, "resource_configurations": {"g4": {}}}
    entry = {"name": "General", "value": json.dumps(kept)}
    number = put_task(double, "service", worker="s", configuration={"General": entry})
    workers = take_snapshot(client_of(double), SETTINGS).workers
    assert [each.slots for each in workers if each.name == "autoscaler of gpu"] == [5]
    assert check(double, "gpu").answer is Answer.SAFE
    double.store.tasks[number]["status"] = "stopped"
    assert check(double, "gpu").answer is Answer.UNSAFE


@pytest.mark.parametrize("value", ["no json", "[]", '{"queues": 7, "resource_configurations": 1}'])
def test_what_looks_like_an_autoscaler_and_is_none_refuses_nobody(double, value):
    add_worker(double, "s", "services", tags=["services-mode"])
    add_worker(double, "a", "default")
    entry = {"name": "General", "value": value}
    put_task(double, "service", worker="s", configuration={"General": entry})
    assert check(double, "default").answer is Answer.SAFE


DEEP, ONE_STEP = "[" * 200_000, '{{"x": {{"queue": "default", "parents": {parents}}}}}'
UNREADABLE = {
    "Pipeline": [DEEP, '{"x":' * 200_000, "[1]", '{"x": 5}', ONE_STEP.format(parents=5)],
    "schedule": [DEEP, "5", '{"queue": "default"}', '[{"queue": {"a": 1}}]'],
    "General": [DEEP, '{"resource_configurations": {}, "queues": {"gpu": [["g4", Infinity]]}}'],
}


@pytest.mark.parametrize("kind", ["controller", "service"])
@pytest.mark.parametrize(
    ("section", "value"), [(name, each) for name, found in UNREADABLE.items() for each in found],
    ids=itertools.count(),
)  # fmt: skip
def test_what_nobody_can_read_on_a_task_of_others_refuses_nobody(double, kind, section, value):
    add_worker(double, "s", "services", tags=["services-mode"])
    add_worker(double, "a", "default")
    add_worker(double, "b", "gpu")
    entry = {"name": section, "value": value}
    number = put_task(double, kind, worker="b", configuration={section: entry})
    assert check(double, "default").answer is Answer.SAFE
    workspace_status(client_of(double), SETTINGS)
    monitor = PipelineMonitor(client_of(double), number, SETTINGS, acts=False, notify=print)
    assert monitor.poll()
    mine = check_enqueue(number, "services", SETTINGS, client=client_of(double))
    assert mine.reasons or mine.answer is Answer.SAFE  # an answer, whatever it is


def test_the_kubernetes_glue_is_known_by_its_note_on_the_tasks_that_it_took(double):
    double.store.queues_create({"name": "k8s_scheduler"})
    add_worker(double, "glue", "gpu")
    add_worker(double, "a", "default")
    assert {e.slots for e in take_snapshot(client_of(double), SETTINGS).workers} == {1}
    noted = {"properties": {"k8s-queue": {"name": "k8s-queue", "value": "gpu"}}}
    put_task(double, "training", queue="k8s_scheduler", hyperparams=noted)
    found = {each.name: each.slots for each in take_snapshot(client_of(double), SETTINGS).workers}
    assert found == {"glue": None, "a": 1}


def test_steps_go_only_to_a_queue_that_has_what_they_need(double):
    for queue in ("spare", "big", "gpu-2"):
        double.store.queues_create({"name": queue})
        add_worker(double, f"on-{queue}", queue)
    add_worker(double, "agent-1", "services", "default")
    put_tag(double, "big", "label:highmem")
    result = check(double, "default")
    (fix,) = [each for each in result.fixes if each.kind is FixKind.STEP_QUEUE]
    assert fix.queues == (("default", "spare"),)
    assert fix.why == "its machines are of the same kind"
    base = double.store.tasks_create({"name": "base", "tags": ["needs:highmem"]})["id"]
    needy = Plan(name="p", nodes=(Node(name="fit", queue="default", base_task=base),))
    found = check_live(needy, "services", SETTINGS, client=client_of(double))
    (fix,) = [each for each in found.fixes if each.kind is FixKind.STEP_QUEUE]
    assert (fix.queues, fix.why) == ((("default", "big"),), "it has what they need: highmem")


def test_a_controller_goes_only_to_a_queue_that_is_for_controllers(double):
    for queue in ("idle", "ctl"):
        double.store.queues_create({"name": queue})
        add_worker(double, f"on-{queue}", queue)
    add_worker(double, "a", "default")
    assert not [e for e in check(double, "default", controller="default").fixes
                if e.kind is FixKind.CONTROLLER_QUEUE]  # fmt: skip
    put_tag(double, "ctl", "label:services")
    fix = check(double, "default", controller="default").fixes[0]
    assert fix.controller_queue == "ctl"
    assert fix.why == "it is for controllers, and no step goes there"


def test_characters_that_turn_text_never_come_through_from_the_server(double):
    double.store.queues_create({"name": "gpu\u202eelif"})
    add_worker(double, "evil\u2066\x1b[2J", "gpu\u202eelif", "services", "default")
    result = check(double, "default")
    assert result.answer is Answer.UNSAFE
    assert "evil\\u2066\\u001b[2J" in result.reasons[0]
    assert not {"\u202e", "\u2066", "\x1b"} & set(result.to_json())
