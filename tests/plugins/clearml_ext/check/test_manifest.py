"""The agents that make a plan safe, as files: checked, and in words that each reader takes."""

import configparser
import shlex

import pytest
import yaml
from click.testing import CliRunner

from clearml_ext.check.manifest import manifest
from clearml_ext.cli import clearml
from clearml_ext.topology.file import parse_topology
from mlops_ext.errors import TopologyError
from mlops_ext.queues.check import check

ONE_AGENT = """
workers: [{name: agent-1, queues: [services, default]}]
pipelines: [{name: nightly, queue: services, steps: [{name: train, queue: default}]}]
"""
NOBODY = """
pipelines:
  - {name: nightly, queue: default, instances: 3, steps: [{name: train, queue: default}]}
  - name: outer
    queue: services
    steps: [{name: tune, queue: gpu 1, pipeline: {steps: [{name: trial, queue: gpu 1}]}}]
"""


def made(text, **more):
    return manifest(parse_topology(yaml.safe_load(text)), **more)


def test_only_the_agent_that_is_missing_is_named_and_the_checker_agrees():
    found = made(ONE_AGENT)
    assert [agent.queues for agent in found.agents] == [("default",)]
    assert found.changes == ()
    assert check(found.topology).safe
    assert [agent.queues for agent in made(ONE_AGENT, anew=True).agents] == [
        ("default",),
        ("services",),
    ]


def test_controllers_that_share_a_queue_with_steps_have_to_leave_it():
    found = made(NOBODY)
    assert check(found.topology).safe
    slots = [(agent.queues[0], agent.slots) for agent in found.agents]
    assert slots == [("default", 1), ("gpu 1", 1), ("gpu 1", 1), ("services", None)]
    assert found.changes == ("put the controller of nightly in queue services",)


def test_a_safe_plan_needs_nothing_and_one_that_no_agent_saves_is_refused():
    safe = made(NOBODY).topology
    assert manifest(safe).agents == ()
    circle = "pipelines: [{name: p, queue: s, steps: [{name: a, queue: q, after: [a]}]}]"
    with pytest.raises(TopologyError, match="waits for"):
        made(circle)


def test_the_files_say_the_same_command_and_hold_no_credentials():
    found = made(NOBODY)
    compose = yaml.safe_load(found.compose()["docker-compose.yaml"])["services"]
    units = {name.removesuffix(".service"): text for name, text in found.systemd().items()}
    values = {name: yaml.safe_load(text) for name, text in found.helm().items()}
    assert set(compose) == set(units) == {
        "clearml-agent-default", "clearml-agent-gpu-1", "clearml-agent-gpu-1-other",
        "clearml-agent-services",
    }  # fmt: skip
    for name, text in units.items():
        unit = configparser.RawConfigParser(strict=False)
        unit.read_string(text)
        started = shlex.split(unit["Service"]["ExecStart"])[1:]
        assert started == shlex.split(compose[name]["entrypoint"][2])[-len(started) :]
        assert "--foreground" in started
    assert "--services-mode" in units["clearml-agent-services"]
    assert compose["clearml-agent-services"]["environment"]["CLEARML_WORKER_TAGS"]
    assert compose["clearml-agent-gpu-1"]["deploy"]
    assert "deploy" not in compose["clearml-agent-default"]
    assert {each["agentk8sglue"]["queue"] for each in values.values()} == {
        "default", "gpu 1", "services"
    }  # fmt: skip


def test_the_real_agent_takes_the_options_of_the_commands():
    interface = pytest.importorskip("clearml_agent.interface")
    parser = interface.get_parser()
    for text in made(NOBODY).systemd().values():
        (line,) = [each for each in text.splitlines() if each.startswith("ExecStart=")]
        words = shlex.split(line.removeprefix("ExecStart=/usr/bin/env clearml-agent"))
        parsed = parser.parse_args(words)
        assert parsed.foreground
        assert parsed.create_queue
        assert bool(parsed.services_mode) == ("--services-mode" in words)


def test_queues_whose_names_look_alike_get_files_of_their_own():
    text = "pipelines: [{name: p, queue: s, steps: [{name: a, queue: team a}, {name: b, queue: team-a}]}]"
    assert len(made(text).systemd()) == 3


def test_the_command_writes_all_files_or_says_what_is_missing(tmp_path):
    plan, folder = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(ONE_AGENT)
    result = CliRunner().invoke(clearml, ["manifest", str(plan), "--output", str(folder)])
    assert result.exit_code == 0, result.output
    assert {path.name for path in folder.iterdir()} == {
        "docker-compose.yaml",
        "clearml-agent-default.service",
        "values-clearml-agent-default.yaml",
    }
    result = CliRunner().invoke(clearml, ["manifest", str(plan), "--format", "systemd"])
    assert "ExecStart=/usr/bin/env clearml-agent daemon --queue default" in result.output
    plan.write_text("nonsense: 1")
    assert CliRunner().invoke(clearml, ["manifest", str(plan)]).exit_code == 2
