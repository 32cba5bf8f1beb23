"""The demo: a pipeline whose controller and step share one agent, bare and launched by us.

In a clone of the repository the SDK and the agent are real, and the server is the double of the
tests. Elsewhere there is no server: a plan is checked on paper.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clearml_ext.check.fixes import propose
from clearml_ext.topology.file import parse_topology
from mlops_ext.demo import Claim, Event, Progress
from mlops_ext.queues.check import check

# The root of a clone, if this is one.
ROOT = Path(__file__).resolve().parents[3]
_folder = functools.partial(tempfile.TemporaryDirectory, prefix="clearml-demo-")
# A plan that deadlocks: one agent listens to the controller's queue and to its step's.
PLAN = {
    "workers": [{"name": "agent-1", "queues": ["services", "default"]}],
    "pipelines": [
        {"name": "train", "queue": "services", "steps": [{"name": "fit", "queue": "default"}]}
    ],
}


def demo() -> Iterator[Event]:
    """One agent for a controller and its step; simulated if there is no double of a server."""
    if (ROOT / "tests/doubles/clearml/lab.py").is_file() and importlib.util.find_spec(
        "clearml_agent"
    ):
        sys.path.insert(0, str(ROOT))
        yield from _one_agent(importlib.import_module("tests.doubles.clearml.lab"))
    else:
        yield from simulated()


def _one_agent(doubles: Any) -> Iterator[Event]:
    def launch(mode: str) -> Any:
        return lab.run(doubles.pipeline_script("services", "default", mode))

    def statuses() -> str:
        tasks = {task["name"]: task["status"] for task in lab.tasks()}
        return ", ".join(f"{name} {status}" for name, status in sorted(tasks.items()))

    with _folder() as folder, doubles.Lab(Path(folder)) as lab:
        yield Progress(text="launcher: a real agent on the queues services and default")
        lab.agent("agent-1", "services", "default")
        refused = launch("launcher")
        left = statuses()
        yield Progress(text="bare: the same pipeline, the same agent")
        launch("bare")
        lab.wait_for("train", "queued")
        seen = lab.double.count("queues.get_next_task")
        lab.wait(lambda _: lab.double.count("queues.get_next_task") > seen + 3, 15)
        before = statuses()
    reason = next((line for line in refused.stderr.splitlines() if "controller holds" in line), "")
    hangs = before == "nightly in_progress, train queued"
    before = f"hangs: {before}" if hangs else before
    yield Claim(
        what="controller and step on one agent: real SDK, real agent",
        before=before,
        after=f"refused, nothing enqueued: {reason.strip()}",
        holds=hangs and refused.returncode == 1 and bool(reason) and not left,
    )
    yield Progress(text="launcher with fix=True: the same pipeline, the same agent")
    with _folder() as folder, doubles.Lab(Path(folder)) as lab:
        lab.agent("agent-1", "services", "default")
        launch("fix")
        after = statuses()
    yield Claim(
        what="the same with PipelineLauncher(pipeline, fix=True)",
        before=before,
        after=after,
        holds=hangs and after == "nightly completed, train completed",
    )


def simulated() -> Iterator[Event]:
    """Check a plan on paper, and the fix that is proposed for it."""
    topology = parse_topology(PLAN)
    verdict = check(topology)
    fix = next(propose(topology, verdict))
    yield Claim(
        what="simulated: controller and step on one agent",
        before=f"can hang: {verdict.reasons[0]}",
        after=f"{fix.text}: no order of events ends in a deadlock",
        holds=not verdict.safe and check(fix.topology).safe,
    )
