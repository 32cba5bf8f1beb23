"""The double is held to recordings of the real server: endpoints, status codes, and fields."""

import json
from pathlib import Path

import pytest
from tests.doubles.clearml.documents import ApiError
from tests.doubles.clearml.store import Store

RECORDINGS = Path(__file__).parents[2] / "data/clearml/api-samples.jsonl"
SAMPLES = [
    sample
    for sample in map(json.loads, RECORDINGS.read_text().splitlines())
    if sample["endpoint"] != "auth.login"  # answered by the HTTP side
]
OK, NOT_FOUND = 200, 404
READY = {
    "tasks.dequeue": "queued",
    "tasks.enqueue": "stopped",
    "tasks.stop": "in_progress",
    "tasks.stopped": "in_progress",
    "tasks.completed": "in_progress",
    "tasks.failed": "in_progress",
}
CHANGING = {
    "last_update", "last_change", "last_changed_by", "status_changed", "completed", "started",
}  # fmt: skip


def world(sample):
    """A store with what the recorded request names, and the request with the store's ids."""
    store = Store(["default"])
    queue = next(iter(store.queues))
    project = store.projects_create({"name": "probe/.pipelines/deadlock-test"})["id"]
    task = store.tasks_create({"name": "deadlock-test", "type": "controller", "project": project})[
        "id"
    ]
    store.tasks[task]["status"] = READY.get(sample["endpoint"], "created")
    store.workers_register({"worker": "probe:a1", "queues": [queue]})
    if sample["response"].get("fields", {}).get("status_message") == "stopping":
        store.workers_status_report({"worker": "probe:a1", "task": task})
    request = dict(sample["request"])
    if sample["code"] == OK:
        for key, value in (("queue", queue), ("task", task), ("project", project)):
            if isinstance(request.get(key), str):
                request[key] = value
        if request.get("id") and sample["endpoint"].startswith("queues"):
            request["id"] = [queue]
        if request.get("id") and sample["endpoint"].startswith("tasks"):
            request["id"] = [task]
        request.pop("new_task_project", None)
    return store, request


@pytest.mark.parametrize(
    "sample", SAMPLES, ids=[f"{at}-{each['endpoint']}" for at, each in enumerate(SAMPLES)]
)
def test_the_double_answers_as_the_real_server_did(sample):
    store, request = world(sample)
    action = getattr(store, sample["endpoint"].replace(".", "_"), None)
    if sample["code"] == NOT_FOUND:
        assert action is None
        return
    assert action is not None
    if sample["code"] != OK:
        with pytest.raises(ApiError) as caught:
            action(request)
        assert (caught.value.code, caught.value.subcode) == (sample["code"], sample["subcode"])
        return
    answer, recorded = action(request), sample["response"]
    assert set(recorded) <= set(answer) | {"queue_watched"}, sample
    if "fields" in recorded and "status" in recorded["fields"]:
        missing = set(recorded["fields"]) - set(answer["fields"]) - CHANGING
        assert not missing
        assert answer["fields"]["status"] == recorded["fields"]["status"]


def test_rows_of_queues_and_workers_have_the_fields_that_are_read():
    store, _ = world(SAMPLES[0])
    for endpoint, key in (("queues.get_all_ex", "queues"), ("workers.get_all", "workers")):
        recorded = next(s for s in SAMPLES if s["endpoint"] == endpoint)["response"][key][0]
        row = getattr(store, endpoint.replace(".", "_"))({})[key][0]
        assert set(recorded) - {"project", "queue"} <= set(row)


@pytest.fixture
def store():
    return Store(["default", "gpu"])


def status_of(store, number):
    return store.tasks[number]["status"]


def test_a_clone_keeps_its_parent_or_gets_the_task_it_was_cloned_from(store):
    above = store.tasks_create({"name": "above", "runtime": {"a": "b"}})["id"]
    clone = store.tasks_clone({"task": above})["id"]
    again = store.tasks_clone({"task": clone})["id"]
    assert (store.tasks[clone]["parent"], store.tasks[again]["parent"]) == (above, above)
    assert store.tasks[clone]["runtime"] == {}
    store.tasks_delete({"task": above})
    orphan = store.tasks_clone({"task": clone})["id"]
    assert store.tasks[orphan]["parent"] == clone


def test_dequeue_throws_a_task_back_that_runs_already(store):
    number = store.tasks_create({"name": "task"})["id"]
    store.tasks_enqueue({"task": number, "queue_name": "default"})
    queue = store.tasks[number]["execution"]["queue"]
    store.queues_get_next_task({"queue": queue})
    store.tasks_started({"task": number, "force": True})
    store.tasks_dequeue({"task": number})
    assert status_of(store, number) == "created"
    with pytest.raises(ApiError):
        store.queues_remove_task({"task": number, "queue": queue})


def test_a_stopped_task_that_is_still_listed_in_a_queue_is_run(store):
    number = store.tasks_create({"name": "task"})["id"]
    store.tasks_enqueue({"task": number, "queue_name": "default"})
    store.tasks_stopped({"task": number})
    assert status_of(store, number) == "stopped"
    store.queues_get_next_task({"queue": store.tasks[number]["execution"]["queue"]})
    assert status_of(store, number) == "queued"


def test_an_enqueue_by_name_creates_the_queue_and_moves_the_task(store):
    number = store.tasks_create({"name": "task"})["id"]
    for name in ("default", "new"):
        store.tasks_enqueue({"task": number, "queue_name": name})
    held = {row["name"]: len(row["entries"]) for row in store.queues.values()}
    assert held == {"default": 0, "gpu": 0, "new": 1}
    with pytest.raises(ApiError) as caught:
        store.tasks_enqueue({"task": number, "queue_name": "new"})
    assert caught.value.subcode == 706
