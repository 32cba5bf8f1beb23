"""`mlops-ext clearml watch` as a process: what a script that reads it gets."""

import json
import subprocess

import pytest
from tests.doubles.clearml.arrange import add_controller, add_worker, put_step
from tests.doubles.clearml.lab import CLI, Lab

pytest.importorskip("clearml")


def restart(double, requests):
    """Answer so many requests as a server that restarts does; returns a list of those left."""
    left, plain = [None] * requests, double.misbehave

    def away(handler, endpoint):
        if not left:
            return plain(handler, endpoint)
        left.pop()
        double.answer(handler, endpoint, 503, 0, "restarting", {})
        return True

    double.misbehave = away
    return left


@pytest.mark.parametrize(("end", "status"), [("completed", 0), ("failed", 1)])
def test_watch_writes_one_object_for_each_change_and_ends_with_the_pipeline(tmp_path, end, status):
    with Lab(tmp_path) as lab:
        add_worker(lab.double, "a1", "services")
        own = add_controller(lab.double, "nightly", {}, queue="services", worker="a1")
        step = put_step(lab.double, own, "default")
        command = [CLI, "clearml", "watch", "--json", "--interval", "0.05", "--pending", "0.2", own]
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=lab.environment, cwd=tmp_path
        )
        try:
            first = json.loads(process.stdout.readline())
            waits = {"step": "train", "status": "queued", "agent": None}
            assert first == {
                "pipeline": "nightly",
                "status": "in_progress",
                "steps": [waits],
                "messages": [],
            }
            told = json.loads(process.stdout.readline())
            assert told["steps"] == [waits]
            assert "no agent listens to it" in told["messages"][0]
            left = restart(lab.double, 3)
            assert lab.wait(lambda _: not left)
            with lab.store.lock:
                lab.store.take_out(step)
                lab.store.tasks[step].update(status="completed", last_worker="a2")
                lab.store.tasks[own]["status"] = end
            (last,) = map(json.loads, process.stdout)
            assert last["status"] == end
            assert last["steps"] == [{"step": "train", "status": "completed", "agent": "a2"}]
            assert last["messages"] == []
            assert process.wait(600) == status
        finally:
            process.kill()
            process.wait()
        assert lab.store.tasks[step]["status"] == "completed"
        written = {"tasks.enqueue", "tasks.stop", "tasks.stopped", "tasks.failed", "tasks.update"}
        assert not written & {endpoint for endpoint, _ in lab.double.calls}
