"""The double with real agents and real pipeline scripts around it, each a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.doubles.clearml.server import ACCESS_KEY, SECRET_KEY, ApiDouble

CLI = str(Path(sys.executable).with_name("mlops-ext"))
OVER = ("completed", "failed", "stopped")
# A bound of waits for events that come within seconds; a loaded machine may take minutes.
WAIT_S = 600


class Lab:
    """A server with *queues*, and what is started against it; all of it ends with the block."""

    def __init__(self, folder: Path, queues=("default", "services")):
        self.folder = folder
        self.double = ApiDouble(queues)
        self.store = self.double.store
        self.processes = []
        (folder / "tmp").mkdir()
        (folder / "clearml.conf").write_text(
            'agent { package_manager.pip_version: "" }\n'
            "sdk { development { store_uncommitted_code_diff: true, vcs_repo_detect_async: true } }\n"
        )

    def __enter__(self):
        self.double.__enter__()
        return self

    def __exit__(self, *error):
        for process in self.processes:
            self.end(process)
        self.double.__exit__(*error)

    @property
    def environment(self):
        """The process environment without the user's ClearML, and with ours."""
        env = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("CLEARML", "TRAINS", "MLOPS_EXT"))
        }
        return env | {
            "HOME": str(self.folder),
            "TMPDIR": str(self.folder / "tmp"),  # agents keep locks on their names in it
            "CLEARML_CONFIG_FILE": str(self.folder / "clearml.conf"),
            "CLEARML_API_HOST": self.double.url,
            "CLEARML_WEB_HOST": self.double.url,
            "CLEARML_FILES_HOST": f"file://{self.folder}/files",
            "CLEARML_API_ACCESS_KEY": ACCESS_KEY,
            "CLEARML_API_SECRET_KEY": SECRET_KEY,
            "CLEARML_AGENT_SKIP_PIP_VENV_INSTALL": sys.executable,
            "CLEARML_AGENT_SKIP_PYTHON_ENV_INSTALL": "1",
            "CLEARML_AGENT_QUEUE_POLL_FREQ_SEC": "0.4",
            "CLEARML_AGENT_STATUS_REPORT_FREQ_SEC": "3",
            # A machine under load answers late, and is no dead one.
            "MLOPS_EXT_CLEARML_TIMEOUT_S": "120",
            "MLOPS_EXT_CLEARML_FRESH_S": "3600",
            "NO_PROXY": "*",
            "PYTHONUNBUFFERED": "1",
        }

    def agent(self, name, *queues, **environment):
        """Start a ``clearml-agent`` daemon for *queues* and wait until it is registered."""
        log = (self.folder / f"{name}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, "-m", "clearml_agent", "daemon", "--foreground", "--queue", *queues],
            env=self.environment | {"CLEARML_WORKER_ID": f"host:{name}"} | environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=self.folder,
        )
        self.processes.append(process)
        assert self.double.wait_until(lambda store: f"host:{name}" in store.workers, WAIT_S), (
            self.folder / f"{name}.log"
        ).read_text()[-2000:]
        return process

    def end(self, process):
        """End *process* and its children at once."""
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def run(self, text, *arguments, patched=False, timeout_s=WAIT_S, **environment):
        """Run a Python script, below ``mlops-ext run`` if *patched*."""
        script = self.folder / "pipeline.py"
        script.write_text(text)
        command = [sys.executable, str(script), *arguments]
        if patched:
            cli = [CLI, "run", "--patch", "clearml", "--"]
            command = [*cli, *command]
        return subprocess.run(
            command,
            env=self.environment | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def cli(self, *arguments, timeout_s=WAIT_S, **environment):
        """Run ``mlops-ext clearml`` with *arguments*."""
        return subprocess.run(
            [CLI, "clearml", *map(str, arguments)],
            env=self.environment | environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def tasks(self, **fields):
        with self.store.lock:
            return [
                dict(task)
                for task in self.store.tasks.values()
                if all(task.get(key) == value for key, value in fields.items())
            ]

    def controller(self):
        return next(iter(self.tasks(type="controller")), None)

    def wait(self, condition, timeout_s=WAIT_S):
        return self.double.wait_until(condition, timeout_s)

    def wait_for(self, name, *statuses, timeout_s=WAIT_S):
        """Wait until a task called *name* has one of *statuses*; returns whether it came so far."""
        wanted = statuses or OVER
        return self.wait(
            lambda store: any(
                t["name"].startswith(name) and t["status"] in wanted for t in store.tasks.values()
            ),
            timeout_s,
        )

    def log(self, name):
        return (self.folder / f"{name}.log").read_text()


PIPELINE = """
import sys
from clearml import PipelineController, Task

CONTROLLER, STEPS, MODE = {controller!r}, {steps!r}, {mode!r}

def work(x=1):
    print("working on", x)
    return x + 1

if __name__ == "__main__":
    Task.force_requirements_env_freeze(force=False)
    pipeline = PipelineController(
        name="nightly", project="lab", version="1.0.0", add_pipeline_tags=False,
        pool_frequency=0.01, packages=[])
    pipeline.add_function_step(
        "train", work, function_kwargs=dict(x=3), function_return=["y"], packages=[],
        cache_executed_step=False, execution_queue=STEPS, time_limit={limit!r})
    if MODE == "launcher":
        from clearml_ext import PipelineLauncher
        PipelineLauncher(pipeline).launch(CONTROLLER)
    elif MODE == "fix":
        from clearml_ext import PipelineLauncher
        PipelineLauncher(pipeline, fix=True).launch(CONTROLLER)
    else:
        pipeline.start(queue=CONTROLLER)
"""


def pipeline_script(controller, steps, mode="bare", limit=None):
    return PIPELINE.format(controller=controller, steps=steps, mode=mode, limit=limit)
