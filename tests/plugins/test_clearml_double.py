"""The double is held to recordings of the real server: endpoints, status codes, and fields."""

import json
from pathlib import Path

import pytest
from tests.support.clearml_double.store import ApiError, Store

RECORDINGS = Path(__file__).parents[1] / "data/clearml/api-samples.jsonl"
SAMPLES = [
    sample
    for sample in map(json.loads, RECORDINGS.read_text().splitlines())
    if sample["endpoint"] != "auth.login"  # answered by the HTTP side
]
OK, NOT_FOUND = 200, 404
READY = {
    "tasks.dequeue": "queued",
    "tasks.enqueue": "stopped",
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
        if sample["endpoint"] != "tasks.stop":
            assert answer["fields"]["status"] == recorded["fields"]["status"]


def test_rows_of_queues_and_workers_have_the_fields_that_are_read():
    store, _ = world(SAMPLES[0])
    for endpoint, key in (("queues.get_all_ex", "queues"), ("workers.get_all", "workers")):
        recorded = next(s for s in SAMPLES if s["endpoint"] == endpoint)["response"][key][0]
        row = getattr(store, endpoint.replace(".", "_"))({})[key][0]
        assert set(recorded) - {"project", "queue"} <= set(row)
