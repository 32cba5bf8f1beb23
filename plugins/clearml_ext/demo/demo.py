"""The demo: a pipeline whose controller and step share one agent, bare and launched by us.

In a clone of the repository the SDK and the agent are real, and the server is the double of the
tests. Elsewhere there is no server: plans are checked, and played out run by run.
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
from clearml_ext.demo.simulate import hanging_runs
from clearml_ext.topology.file import parse_topology
from mlops_ext.demo import Claim, Event, Progress
from mlops_ext.queues.check import Topology, check

ROOT = Path(__file__).resolve().parents[3]
"""The root of a clone, if this is one."""
_folder = functools.partial(tempfile.TemporaryDirectory, prefix="clearml-demo-")
RUNS = 500
"""Random runs of each plan: enough to meet an order of events that one run in fifty takes."""

_TRAIN = [{"name": "prepare", "queue": "default"},
          {"name": "fit", "queue": "default", "after": ["prepare"]}]  # fmt: skip
_TUNE = [{"name": "trials", "queue": "gpu",
          "pipeline": {"steps": [{"name": "trial", "queue": "gpu"}]}}]  # fmt: skip


def _plan(workers: dict[str, list[str]], queue: str, steps: object, instances: int) -> Topology:
    pipeline = {"name": "train", "queue": queue, "steps": steps, "instances": instances}
    rows = [{"name": name, "queues": queues} for name, queues in workers.items()]
    return parse_topology({"workers": rows, "pipelines": [pipeline]})


CASES = {
    "one agent on both queues": _plan(
        {"agent-1": ["services", "default"]}, "services", _TRAIN, instances=1
    ),
    "two runs of one pipeline, two agents": _plan(
        {"agent-1": ["default"], "agent-2": ["default"]}, "default", _TRAIN, instances=2
    ),
    "a sub-pipeline in the queue of its steps": _plan(
        {"services-agent": ["services"], "gpu-1": ["gpu"]}, "services", _TUNE, instances=1
    ),
}
"""Plans that deadlock, by what is wrong with them."""


def demo() -> Iterator[Event]:
    """One agent for a controller and its step; simulated where there is no double of a server."""
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
    yield Claim(
        what="controller and step on one agent: real SDK, real agent",
        before=f"hangs: {before}" if hangs else before,
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
        before=f"hangs: {before}" if hangs else before,
        after=after,
        holds=hangs and after == "nightly completed, train completed",
    )


def simulated() -> Iterator[Event]:
    """Check each plan, and let random runs say whether the checker is right."""
    for title, topology in CASES.items():
        yield Progress(text=f"simulated: {title}")
        verdict = check(topology)
        before = hanging_runs(topology, RUNS)
        fix = next(propose(topology, verdict))
        after = hanging_runs(fix.topology, RUNS)
        yield Claim(
            what=f"simulated: {title}: runs that hang, of {RUNS}",
            before=f"{before}: {verdict.reasons[0]}",
            after=f"{after}: {fix.text}",
            holds=not verdict.safe and before > 0 and after == 0 and check(fix.topology).safe,
        )
