"""Orchestrators' pods that die or are drained on a real cluster."""

import json
import random
import time

import pytest
from tests.cluster.project import ON_A_CLUSTER, kills, kubectl, objects, outcomes, running

pytestmark = ON_A_CLUSTER
CHAIN = """
def body():
    time.sleep(6)
    blocks = eat(700)
    time.sleep(6)
    return blocks

@step(enable_cache=False, settings=orchestrator("600Mi"))
def one() -> int:
    return body()

@step(enable_cache=False, settings=orchestrator("600Mi"))
def two(number: int) -> int:
    return body()

@step(enable_cache=False, settings=orchestrator("900Mi"))
def beside() -> int:
    return body()

@step(enable_cache=False, settings=orchestrator("600Mi"))
def last(number: int, other: int) -> int:
    return body()

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def chain_NUMBER():
    last(two(one()), beside())

the_pipeline = chain_NUMBER
"""
KILLS, RUNS, MOST = 5, 2, 3
"""Kubernetes waits 10, 20, 40, 80, 160 s before it starts a Job's next pod: ten kills of one Job
would take an hour, so they are spread over two rounds of two runs side by side."""


class Killer:
    """Kills orchestrators' pods at random moments after their start."""

    def __init__(self):
        self.due, self.killed, self.overlaps = {}, [], []

    def poll(self):
        pods = [pod for pod in objects("pods", "run_id") if pod["status"]["phase"] == "Running"]
        labels = [pod["metadata"]["labels"] for pod in pods]
        steps = [(one["run_id"], one["step_name"]) for one in labels if "step_name" in one]
        self.overlaps += [step for step in steps if steps.count(step) > 1]
        now = time.monotonic()
        for pod in pods:
            name, run = pod["metadata"]["name"], pod["metadata"]["labels"]["run_id"]
            if "step_name" in pod["metadata"]["labels"] or (name, run) in self.killed:
                continue
            due = self.due.setdefault(name, now + random.uniform(0, 15))
            of_run = sum(run == other for _, other in self.killed)
            if now > due and len(self.killed) < KILLS and of_run < MOST:
                kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
                self.killed.append((name, run))


@pytest.mark.parametrize("number", [1, 2])
def test_orchestrators_that_die_lose_no_step_and_run_none_twice_at_once(project, number):
    processes = [project.start(CHAIN.replace("NUMBER", str(number))) for _ in range(RUNS)]
    killer, end = Killer(), time.monotonic() + 1000
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        killer.poll()
        time.sleep(0.5)
    runs = [project.finish(process) for process in processes]
    assert len(killer.killed) == KILLS
    assert killer.overlaps == []
    for found in runs:
        rows = found.statuses()
        assert rows == dict.fromkeys(("one", "two", "beside", "last"), "completed"), found.output
        assert [step_run["version"] for step_run in found.run["steps"]] == [1] * 4
        for step in ("one", "two", "last"):  # the second run may know by then what they need
            assert outcomes(found, step)[-1] == "completed"
            assert kills(found, step) <= 1
    assert sum(kills(found, "one") for found in runs) >= 1


DRAINED = """
@step(enable_cache=False, settings=orchestrator("400Mi"))
def drained() -> int:
    time.sleep(100)
    return 1

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def drained_pipeline():
    drained()

the_pipeline = drained_pipeline
"""


def evict(pod):
    """What ``kubectl drain`` asks for: the pod is a DisruptionTarget."""
    name = pod["metadata"]["name"]
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    path = f"/api/v1/namespaces/zenml/pods/{name}/eviction"
    done = kubectl("create", "--raw", path, "-f", "-", text=json.dumps(eviction))
    assert done.returncode == 0, done.stderr


def test_pods_that_are_drained_go_on_and_use_up_nobodys_retries(project):
    process = project.start(DRAINED)
    step = running("step_name=drained")
    run = step["metadata"]["labels"]["run_id"]
    evict(running(f"run_id={run},!step_name"))
    evict(step)
    found = project.finish(process)
    assert found.status == "completed", found.output
    assert outcomes(found, "drained") == ["evicted", "completed"]
    assert len({attempt["memory"] for attempt in found.attempts("drained")}) == 1
    (job,) = objects("jobs", f"run_id={run},!step_name")
    assert not job["status"].get("failed")
