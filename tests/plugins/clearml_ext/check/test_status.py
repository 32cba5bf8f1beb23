"""The whole workspace in one answer: unserved queues, held agents, stuck runs, and a next launch."""

import json

import pytest

pytest.importorskip("clearml")

from click.testing import CliRunner
from tests.doubles.clearml.arrange import add_controller, add_worker, client_of
from tests.doubles.clearml.server import ACCESS_KEY, SECRET_KEY

from clearml_ext.check.status import workspace_status
from clearml_ext.cli import clearml
from clearml_ext.settings import ClearmlSettings

SETTINGS = ClearmlSettings(timeout_s=120)


def queue_of(found, name):
    return next(queue for queue in found.queues if queue.name == name)


def test_a_workspace_without_trouble_is_healthy(double):
    add_worker(double, "s", "services")
    add_worker(double, "a", "default")
    found = workspace_status(client_of(double), SETTINGS)
    assert found.healthy
    assert queue_of(found, "default").launch == "safe"
    assert queue_of(found, "gpu").launch == "unsafe"
    assert (found.held, found.stuck) == ((), ())


def test_stuck_runs_held_agents_and_dead_ones_are_named(double):
    add_worker(double, "s", "services", "default")
    add_worker(double, "gone", "gpu", age_s=500)
    own = add_controller(double, "nightly", {"x": "default"}, queue="services", worker="s")
    double.store.tasks[own]["started"] = "2026-01-01T00:00:00+00:00"
    found = workspace_status(client_of(double), SETTINGS)
    assert not found.healthy
    (held,) = found.held
    assert (held.worker, held.type, held.since[:4]) == ("s", "controller", "2026")
    assert any("waits in default" in reason for reason in found.stuck)
    assert queue_of(found, "gpu").dead == ("gone",)
    assert queue_of(found, "default").launch == "unsafe"


def test_a_task_that_waits_where_nobody_listens_is_trouble(double):
    number = double.store.tasks_create({"name": "alone", "type": "training"})["id"]
    double.store.tasks_enqueue({"task": number, "queue_name": "gpu"})
    found = workspace_status(client_of(double), SETTINGS)
    assert queue_of(found, "gpu").unserved
    assert not found.healthy


def test_the_command_says_it_in_a_table_as_json_and_by_its_status(double, monkeypatch):
    monkeypatch.setenv("CLEARML_API_HOST", double.url)
    monkeypatch.setenv("CLEARML_API_ACCESS_KEY", ACCESS_KEY)
    monkeypatch.setenv("CLEARML_API_SECRET_KEY", SECRET_KEY)
    monkeypatch.setattr("clearml.backend_interface.base.InterfaceBase._default_session", None)
    add_worker(double, "s", "services")
    result = CliRunner().invoke(clearml, ["status"])
    assert result.exit_code == 0, result.output
    assert "one more launch" in result.output
    result = CliRunner().invoke(clearml, ["status", "--json"])
    assert json.loads(result.output)["healthy"]
    add_controller(double, "nightly", {"x": "gpu"}, queue="services", worker="s")
    result = CliRunner().invoke(clearml, ["status"])
    assert result.exit_code == 1
    assert "stuck: nightly" in result.output
