"""The table of what ClearML does today, with real agents: it hangs bare, and not with us."""

import datetime as dt
import json

import pytest
from tests.doubles.clearml.lab import Lab, pipeline_script

from mlops_ext.cli.run import child_environment

pytest.importorskip("clearml_agent")

pytestmark = pytest.mark.timeout(2400)


@pytest.fixture
def lab(tmp_path):
    with Lab(tmp_path, ["default", "services", "gpu"]) as lab:
        yield lab


def pretend_agent(lab, name, queue):
    """A worker that is listed, reports, and never takes a task: one that is busy forever."""
    number = next(n for n, row in lab.store.queues.items() if row["name"] == queue)
    lab.store.workers_register({"worker": name, "queues": [number]})
    lab.store.workers[name]["last_activity_time"] += dt.timedelta(hours=1)


def statuses(lab):
    return {task["name"]: task["status"] for task in lab.tasks()}


def asked_in_vain(lab, times=3):
    """Wait until the agents have asked for work *times* more."""
    seen = lab.double.count("queues.get_next_task", "tasks.get_all")
    lab.wait(lambda _: lab.double.count("queues.get_next_task", "tasks.get_all") > seen + times, 15)


def hangs(lab):
    """Whether the controller runs and its step waits, for as long as anything happens."""
    assert lab.wait_for("train", "queued"), (statuses(lab), lab.log("a1")[-2000:])
    asked_in_vain(lab)
    return statuses(lab) == {"nightly": "in_progress", "train": "queued"}


def test_one_agent_hangs_bare_and_is_refused_with_the_patch(lab):
    lab.agent("a1", "services", "default")
    result = lab.run(pipeline_script("services", "default"), patched=True)
    assert result.returncode != 0
    assert (
        'controller holds host:a1 → step "train" waits in default → only host:a1 listens'
        in result.stderr
    )
    assert lab.tasks() == []
    assert lab.run(pipeline_script("services", "default")).returncode == 0
    assert hangs(lab)


@pytest.mark.integration
def test_a_launched_pipeline_completes_on_separate_agents(lab):
    lab.agent("a1", "services")
    lab.agent("a2", "default")
    result = lab.run(pipeline_script("services", "default", "launcher"))
    assert result.returncode == 0, result.stderr
    assert lab.wait_for("nightly"), (statuses(lab), lab.log("a1")[-2000:])
    assert statuses(lab) == {"nightly": "completed", "train": "completed"}, lab.log("a1")[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("queues", [("default", "default"), ("services", "default")])
def test_a_pipeline_that_would_stand_still_completes_when_it_may_be_rerouted(lab, queues):
    lab.agent("a1", *dict.fromkeys(queues))
    result = lab.run(pipeline_script(*queues, "fix"))
    assert result.returncode == 0, result.stderr
    assert statuses(lab) == {"nightly": "completed", "train": "completed"}


@pytest.mark.slow
def test_controller_and_step_in_one_queue_stand_still_bare_and_are_refused(lab):
    lab.agent("a1", "default")
    assert lab.run(pipeline_script("default", "default", "launcher")).returncode == 1
    assert lab.tasks() == []
    lab.run(pipeline_script("default", "default"))
    assert hangs(lab)


NESTED = """
import sys
from clearml import PipelineController, Task

def work(x=1):
    return x

def make(name, **more):
    return PipelineController(
        name=name, project="lab", version="1.0.0", add_pipeline_tags=False, pool_frequency=0.01,
        packages=[], **more)

if __name__ == "__main__":
    which, mode = {which!r}, {mode!r}
    if which == "inner":
        inner = make("inner")
        inner.add_function_step("trial", work, packages=[], execution_queue="default")
        inner.create_draft() if Task.running_locally() else inner.start()
    else:
        outer = make("outer")
        outer.add_step("tune", base_task_id={base!r}, execution_queue={queue!r})
        if mode == "launcher":
            from clearml_ext import PipelineLauncher
            PipelineLauncher(outer).launch("services")
        else:
            outer.start(queue="services")
"""


@pytest.mark.slow
def test_a_sub_pipeline_on_the_steps_agent_hangs_bare_and_is_refused(lab):
    lab.run(NESTED.format(which="inner", mode="", base="", queue=""))
    (inner,) = lab.tasks(type="controller")
    lab.agent("s1", "services")
    lab.agent("a1", "default")
    script = {"which": "outer", "base": inner["id"]}
    result = lab.run(NESTED.format(mode="launcher", queue="default", **script))
    assert result.returncode == 1
    assert 'sub-pipeline "tune" holds host:a1 → step "trial" waits in default' in result.stderr
    assert [task["id"] for task in lab.tasks()] == [inner["id"]]
    assert lab.run(NESTED.format(mode="bare", queue="default", **script)).returncode == 0
    assert lab.wait_for("trial", "queued"), (statuses(lab), lab.log("a1"))
    asked_in_vain(lab)
    assert statuses(lab)["trial"] == "queued"
    assert sorted(task["status"] for task in lab.tasks(type="controller")) == [
        "created",
        "in_progress",
        "in_progress",
    ]


@pytest.mark.slow
def test_a_missing_controller_queue_leaves_an_orphan_bare_and_nothing_with_the_launcher(lab):
    pretend_agent(lab, "a2", "default")
    result = lab.run(pipeline_script("srevices", "default", "launcher"))
    assert result.returncode == 1
    assert "did you mean 'services'?" in result.stderr
    assert lab.tasks() == []
    result = lab.run(pipeline_script("srevices", "default"))
    assert "ValueError" in result.stderr
    assert list(statuses(lab)) == ["nightly"]


@pytest.mark.slow
def test_a_missing_step_queue_hangs_bare_and_is_refused(lab):
    lab.agent("a1", "services")
    result = lab.run(pipeline_script("services", "defualt", "launcher"))
    assert result.returncode == 1
    assert "did you mean 'default'?" in result.stderr
    assert lab.tasks() == []
    lab.run(pipeline_script("services", "defualt"))
    assert lab.wait_for("train", "created")
    asked_in_vain(lab)
    assert statuses(lab) == {"nightly": "in_progress", "train": "created"}


@pytest.mark.slow
def test_an_unwatched_step_queue_hangs_bare_and_is_refused(lab):
    lab.agent("a1", "services")
    result = lab.run(pipeline_script("services", "gpu", "launcher"))
    assert "waits in gpu → no worker listens" in result.stderr
    assert lab.tasks() == []
    lab.run(pipeline_script("services", "gpu"))
    assert hangs(lab)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bare", "launcher"])
def test_a_time_limit_of_a_step_that_waits_ends_the_controller_only_bare(lab, mode):
    lab.agent("a1", "services")
    pretend_agent(lab, "a2", "default")
    result = lab.run(pipeline_script("services", "default", mode, limit=0.5))
    assert result.returncode == 0, result.stderr
    assert lab.wait_for("train", "queued"), lab.log("a1")
    if mode == "bare":
        assert lab.wait_for("nightly"), lab.log("a1")
        assert statuses(lab) == {"nightly": "completed", "train": "queued"}
        return
    assert hangs(lab)
    lab.agent("a3", "default")
    assert lab.wait_for("nightly"), lab.log("a1")
    assert "NoneType" not in lab.log("a1")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bare", "launcher"])
def test_a_time_limit_stops_the_step_only_with_the_launcher(lab, mode):
    lab.agent("a1", "services")
    lab.agent("a2", "default")
    script = pipeline_script("services", "default", mode, limit=2)
    script = script.replace('print("working on", x)', "import threading; threading.Event().wait()")
    assert lab.run(script).returncode == 0
    assert lab.wait_for("train", "in_progress"), lab.log("a1")
    if mode == "bare":
        asked_in_vain(lab, times=8)
        assert statuses(lab)["train"] == "in_progress"
        return
    assert lab.wait_for("train", "stopped"), (statuses(lab), lab.log("a1")[-2000:])
    assert lab.wait_for("nightly"), (statuses(lab), lab.log("a1")[-2000:])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["bare", "launcher"])
def test_an_abort_takes_the_steps_along_only_with_the_launcher(lab, mode):
    lab.agent("a1", "services")
    pretend_agent(lab, "a2", "default")
    assert lab.run(pipeline_script("services", "default", mode)).returncode == 0
    assert lab.wait_for("train", "queued"), lab.log("a1")
    with lab.store.lock:
        lab.store.tasks_stop({"task": lab.controller()["id"], "status_reason": "by hand"})
    assert lab.wait_for("nightly", "stopped"), (statuses(lab), lab.log("a1"))
    if mode == "bare":
        asked_in_vain(lab)
        assert statuses(lab)["train"] == "queued"
    else:
        assert lab.wait_for("train", "stopped"), statuses(lab)


@pytest.mark.slow
def test_a_clone_from_the_web_interface_is_checked_on_the_agent(lab):
    agent = lab.agent("a1", "services")
    pretend_agent(lab, "a2", "default")
    assert lab.run(pipeline_script("services", "default", "launcher")).returncode == 0
    assert lab.wait_for("train", "queued"), lab.log("a1")
    with lab.store.lock:
        first = lab.controller()["id"]
        clone = lab.store.tasks_clone({"task": first, "new_task_name": "clone"})["id"]
        lab.store.tasks_enqueue({"task": clone, "queue_name": "default"})
        lab.store.tasks_stop({"task": first})
    # The server calls the clone a child of the first run; its abort must not reach it.
    assert lab.wait_for("train", "stopped"), (statuses(lab), lab.log("a1"))
    assert lab.tasks(id=clone)[0]["status"] == "queued"
    lab.end(agent)
    lab.store.workers.clear()
    lab.agent("b1", "default")
    assert lab.wait_for("clone"), (statuses(lab), lab.log("b1"))
    assert lab.tasks(id=clone)[0]["status"] == "failed"
    assert "only host:b1 listens" in lab.log("b1") + json.dumps(lab.tasks(id=clone)[0])
    assert lab.tasks(parent=clone) == []


COMPONENT = """
from clearml import PipelineDecorator
{imports}

@PipelineDecorator.component(
    return_values=["y"], execution_queue="default", packages=[], cache=False)
def outer(x):
    {body}
    return x + 1

@{decorator}(name="nightly", project="lab", version="1.0", pool_frequency=0.01)
def nightly(x=1):
    print("result", outer(x))

if __name__ == "__main__":
    nightly()
"""
BODY_WITH_COMPONENT = """
    from clearml import PipelineDecorator
    @PipelineDecorator.component(
        return_values=["y"], execution_queue="default", packages=[], cache=False)
    def inner(x):
        return x + 1
    print("inner gave", str(inner(x)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("patched", [False, True])
def test_a_component_called_inside_a_step_waits_for_its_own_agent_only_bare(lab, patched):
    armed = child_environment(["clearml"]) if patched else {}
    kept = {k: v for k, v in armed.items() if k in ("PYTHONPATH", "MLOPS_EXT_AUTOPATCH")}
    lab.agent("a1", "services")
    lab.agent("a2", "default", **kept)
    script = COMPONENT.format(
        imports="", decorator="PipelineDecorator.pipeline", body=BODY_WITH_COMPONENT.strip()
    )
    assert lab.run(script).returncode == 0
    if not patched:
        assert lab.wait_for("inner", "queued"), (statuses(lab), lab.log("a2"))
        asked_in_vain(lab)
        assert statuses(lab)["outer"] == "in_progress"
        return
    assert lab.wait_for("inner", "failed"), (statuses(lab), lab.log("a2"))
    failed = lab.tasks(name="inner", status="failed")
    assert all("was not launched" in task["status_message"] for task in failed)
    assert lab.wait_for("outer"), (statuses(lab), lab.log("a2"))


@pytest.mark.slow
def test_a_decorated_pipeline_is_refused_before_anything_is_created(lab):
    script = COMPONENT.format(
        imports="from clearml_ext import guarded_pipeline",
        decorator="guarded_pipeline",
        body="pass",
    )
    lab.agent("a1", "services", "default")
    result = lab.run(script)
    assert result.returncode == 1
    assert "waits in default → only host:a1 listens" in result.stderr
    assert lab.double.count("tasks.create") == 0
    lab.agent("a2", "default")
    result = lab.run(script)
    assert result.returncode == 0, result.stderr
    assert lab.wait_for("nightly"), (statuses(lab), lab.log("a1"))
    assert statuses(lab)["outer"] == "completed", (statuses(lab), lab.log("a1")[-3000:])


@pytest.mark.slow
def test_the_command_line_refuses_with_one_message_and_leaves_nothing(lab):
    pretend_agent(lab, "a1", "services")
    script = lab.folder / "nightly.py"
    script.write_text(pipeline_script("services", "gpu"))
    result = lab.cli("launch", script)
    assert result.returncode == 1
    assert "nightly was not launched" in result.stderr
    assert "Traceback" not in result.stderr
    result = lab.cli("check", "--json", script)
    assert (result.returncode, json.loads(result.stdout)["verdict"]) == (1, "unsafe")
    lab.double.faults["workers.get_all"] = ("status", 500, "boom")
    result = lab.cli("launch", script)
    assert result.returncode == 2
    assert "answered workers.get_all with 500 (boom)" in result.stderr
    assert lab.tasks() == []
    assert lab.double.count("tasks.enqueue") == 0


def test_the_command_line_gives_an_absent_server_up_at_once(lab):
    script = lab.folder / "nightly.py"
    script.write_text(pipeline_script("services", "gpu"))
    result = lab.cli("launch", script, CLEARML_API_HOST="http://user:secret@127.0.0.1:9")
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "cannot be reached" in result.stderr
    assert "secret" not in result.stderr
