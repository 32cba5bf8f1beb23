"""The table of what ClearML does today, with real agents: it stands still bare, and does not here."""

import time

import pytest
from tests.support.clearml_double.lab import Lab, pipeline_script

pytest.importorskip("clearml_agent")


@pytest.fixture
def lab(tmp_path):
    with Lab(tmp_path) as lab:
        yield lab


def stands_still(lab):
    """Whether the controller runs, its step waits, and every agent asked again in vain."""
    assert lab.wait_for("train", "queued"), lab.tasks()
    asked = lab.double.count("queues.get_next_task")
    lab.wait(lambda store: lab.double.count("queues.get_next_task") > asked + 3, 15)
    statuses = {task["name"]: task["status"] for task in lab.tasks()}
    return statuses == {"nightly": "in_progress", "train": "queued"}


def test_separate_agents_complete_with_the_launcher(lab):
    lab.agent("a1", "services")
    lab.agent("a2", "default")
    begin = time.monotonic()
    result = lab.run(pipeline_script("services", "default", "launcher"))
    assert result.returncode == 0, result.stderr
    print("client", time.monotonic() - begin)
    assert lab.wait_for("nightly")
    print("done", time.monotonic() - begin)
    assert {task["status"] for task in lab.tasks()} == {"completed"}, lab.log("a1")
