"""The end of a controller that runs: who ended it decides what becomes of its steps.

The controller is a real one, with the watchdog in it and the reaper beside it. The agent is played by
the test: it ends the controller in the very moment that a loaded machine would, and every wait is for
an event.
"""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from tests.doubles.clearml.lab import Lab, pipeline_script

pytest.importorskip("clearml")

pytestmark = [pytest.mark.timeout(2400), pytest.mark.slow]

WORKER, REAPER = "host:a1", "clearml_ext.watchdog.reaper_process"
APPROVED = """
def approved(pipeline, node, parameters):
    import pathlib, time
    while not pathlib.Path("approved").exists():
        time.sleep(0.01)

"""


@pytest.fixture
def lab(tmp_path):
    with Lab(tmp_path, ["default", "services", "gpu"]) as lab:
        for name, queue in ((WORKER, "services"), ("host:a2", "default")):
            number = next(n for n, row in lab.store.queues.items() if row["name"] == queue)
            lab.store.workers_register({"worker": name, "queues": [number]})
        yield lab


class Run:
    """A controller that an agent took, and that runs until its step waits."""

    def __init__(self, lab, script):
        self.lab, self.store = lab, lab.store
        result = lab.run(script)
        assert result.returncode == 0, result.stderr
        self.number = lab.controller()["id"]
        with self.store.lock:
            self.store.queues_get_next_task({"queue": lab.controller()["execution"]["queue"]})
            self.store.workers_status_report({"worker": WORKER, "task": self.number})
        environment = {
            "CLEARML_TASK_ID": self.number,
            "CLEARML_WORKER_ID": WORKER,
            "MLOPS_EXT_CLEARML_INTERVAL_S": "0.05",
            "MLOPS_EXT_CLEARML_PENDING_S": "0.05",
        }
        self.log = lab.folder / "controller.log"
        self.process = subprocess.Popen(
            [sys.executable, str(lab.folder / "pipeline.py")],
            env=lab.environment | environment,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            cwd=lab.folder,
            start_new_session=True,
        )
        lab.processes.append(self.process)

    def step(self):
        return next(iter(self.lab.tasks(name="train")), None)

    def wait_for_step(self, status):
        assert self.lab.wait_for("train", status), self.log.read_text()[-2000:]

    def wait_for_polls(self, count=20):
        """Wait until the watchdog has asked *count* times more what became of the steps."""

        def polls():
            wanted = {"parent": self.number}.items()
            return sum(
                name == "tasks.get_all" and wanted <= request.items()
                for name, request in list(self.lab.double.calls)
            )

        seen = polls()
        assert self.lab.wait(lambda _: polls() >= seen + count), self.log.read_text()[-2000:]

    def hold(self):
        """Hold the controller, so that its watchdog comes too late, as under load."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def kill(self):
        """Kill the controller as an agent does; return once the reaper is gone, too."""
        mine = [each for each in psutil.process_iter() if self.is_reaper(each)]
        assert mine, "the reaper runs beside the controller"
        self.lab.end(self.process)
        gone, alive = psutil.wait_procs(mine, timeout=600)
        assert gone
        assert not alive

    def is_reaper(self, process):
        try:
            same = process.environ().get("CLEARML_TASK_ID") == self.number
            return same and REAPER in process.cmdline()
        except psutil.Error:
            return False


@pytest.fixture
def run(lab):
    run = Run(lab, pipeline_script("services", "default", "launcher"))
    run.wait_for_step("queued")
    return run


def abort(run, **more):
    with run.store.lock:
        run.store.tasks_stop({"task": run.number, **more})


def test_a_person_s_abort_reaches_the_step_where_the_controller_is_killed_before_it_can_act(run):
    run.hold()
    abort(run)
    assert run.lab.controller()["status_message"] == "stopping"
    run.kill()
    assert run.step()["status"] == "stopped"
    run.store.tasks_reset({"task": run.step()["id"]})
    run.store.tasks_enqueue({"task": run.step()["id"], "queue_name": "default"})
    assert run.step()["status"] == "queued"


def test_a_person_s_abort_reaches_the_step_where_the_controller_lives_on(run):
    abort(run)
    run.wait_for_step("stopped")
    assert not any(row["entries"] for row in run.store.queues.values())


def test_a_controller_that_the_server_gave_up_leaves_its_step(run):
    run.hold()
    text = "Forced stop (non-responsive)"
    with run.store.lock:
        run.store.tasks_stopped({"task": run.number, "status_message": text, "status_reason": text})
    run.kill()
    assert run.step()["status"] == "queued"


def test_a_controller_that_crashes_leaves_its_step(run):
    run.kill()
    assert run.step()["status"] == "queued"


def test_a_step_that_was_taken_out_to_be_put_elsewhere_is_left_alone_by_the_watchdog(run):
    with run.store.lock:
        run.store.tasks_dequeue({"task": run.step()["id"]})
    run.wait_for_polls()
    assert run.step()["status"] == "created"
    with run.store.lock:
        run.store.tasks_enqueue({"task": run.step()["id"], "queue_name": "gpu"})
    run.wait_for_polls()
    assert run.step()["status"] == "queued"


def test_a_step_whose_callback_waits_for_an_approval_is_left_alone_until_it_comes(lab):
    script = pipeline_script("services", "default", "launcher")
    launch = "PipelineLauncher(pipeline).launch(CONTROLLER"
    script = script.replace(launch, f"{launch}, step_task_created_callback=approved")
    run = Run(lab, APPROVED + script)
    run.wait_for_step("created")
    run.wait_for_polls()
    assert run.step()["status"] == "created"
    (lab.folder / "approved").touch()
    run.wait_for_step("queued")
