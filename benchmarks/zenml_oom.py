"""What out-of-memory retries cost: bare ZenML against zenml_ext, in one run.

Both drive ZenML's own functions through the real Kubernetes client against the double of the
Kubernetes API in tests/, where pods end as told. Measured:

* api calls: calls for a step that starts, is looked at, and completes; must be the same;
* kill to next pod: seconds from a pod's end by OOMKilled to the creation of the pod that follows,
  and the calls made for it. Bare ZenML leaves it to Kubernetes, which starts a pod with the same
  memory after a back-off: 10 s on a real cluster, 0.3 s here. Ours is bigger;
* side by side: many steps at once, of which one in ten is killed once: seconds a round of looks
  takes, calls a step, and whether all completed;
* local steps: seconds that a trivial step takes on ZenML's own local orchestrator, in its own
  process, and on local_oom, in a process of its own under a limit; the second run of a pipeline
  of five, so that what ZenML imports and makes once is there.

    python benchmarks/zenml_oom.py [--json] [--quick]
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kubernetes import config
from rich.console import Console
from rich.table import Table
from tests.doubles.kubernetes import Cluster
from tests.doubles.kubernetes.orchestrator import (
    OPTIONS,
    FakeStepRuns,
    JobStatus,
    Orchestrator,
    step_job,
)
from zenml.integrations.kubernetes import kube_utils

from mlops_ext.memory import Quantity


class Side:
    """Bare ZenML, or ours: what its orchestrator's process does about step Jobs."""

    def __init__(self, cluster, *, ours):
        step_runs = FakeStepRuns()
        step_runs.limit = Quantity.parse("1Mi")
        self.ours = ours
        self.process = Orchestrator(cluster, step_runs)

    def start(self, name, ends, retries=0):
        if self.ours:
            self.process.start(ends, name, name, "1Mi", retries)
            return
        body = step_job(name, name, ends, limit="1Mi", backoff_limit=retries)
        kube_utils.create_job(batch_api=self.process.batch, namespace="zenml", job_manifest=body)

    def look(self, name):
        if self.ours:
            return self.process.check(name)[0]
        return kube_utils.check_job_status(
            batch_api=self.process.batch,
            core_api=self.process.core,
            namespace="zenml",
            job_name=name,
            **OPTIONS,
        )[0]

    def wait(self, names, interval_s):
        """Look at every step in rounds, as ZenML's monitoring loop does; seconds of a round."""
        left, rounds, results = list(names), [], {}
        while left:
            begin = time.perf_counter()
            for name in list(left):
                found = self.look(name)
                if found is not JobStatus.RUNNING:
                    left.remove(name)
                    results[name] = found
            rounds.append(time.perf_counter() - begin)
            time.sleep(max(0.0, interval_s - rounds[-1]))
        return rounds, results


def fresh(work, *, ours, nodes="4000Gi"):
    with Cluster({"node-a": nodes}, real=False, tls=False) as cluster:
        config.load_kube_config(str(cluster.kubeconfig()))
        return work(cluster, Side(cluster, ours=ours))


def calls_of_a_step(cluster, side):
    """Calls for one step with three looks while it runs, and one when it is done."""
    cluster.pause_jobs.set()
    begin = len(cluster.calls)
    side.start("step", "0 Completed 0")
    for _ in range(3):
        side.look("step")
    cluster.pause_jobs.clear()
    cluster.wait_for(lambda: [j for j in cluster.list("jobs") if j["status"].get("conditions")])
    side.look("step")
    return len(cluster.calls) - begin


def kill_to_next_pod(repeats, interval_s):
    def work(cluster, side):
        """Medians: seconds from a pod's end to the creation of the next, and the calls for it."""
        times, calls = [], []
        for number in range(repeats):
            name = f"step{number}"
            side.start(name, "137 OOMKilled 0;0 Completed 0", retries=1)

            def pods(name=name):
                return cluster.list("pods", f"step_name={name}")

            cluster.wait_for(lambda: [p for p in pods() if p["status"]["phase"] == "Failed"])
            ended, begin = time.perf_counter(), len(cluster.calls)
            while len(pods()) < 2:
                side.look(name)
                time.sleep(interval_s)
            times.append(time.perf_counter() - ended)
            calls.append(len(cluster.calls) - begin)
        return {"seconds": statistics.median(times), "calls": statistics.median(calls)}

    return work


def side_by_side(count, interval_s):
    def work(cluster, side):
        names = [f"s{number}" for number in range(count)]
        begin = time.perf_counter()
        for number, name in enumerate(names):
            killed = number % 10 == 0
            side.start(name, "137 OOMKilled 0;0 Completed 1" if killed else "0 Completed 1", 1)
        rounds, results = side.wait(names, interval_s)
        seconds = time.perf_counter() - begin
        good = sum(found is JobStatus.SUCCEEDED for found in results.values())
        mean = len(cluster.calls) / count
        return {
            "steps": count,
            "completed": good,
            "seconds": seconds,
            "round_s": statistics.median(rounds),
            "calls_per_step": mean,
        }

    return work


FIVE = """
import sys, time
from zenml import pipeline, step
from zenml.client import Client
from zenml.enums import StackComponentType as Kind

@step(enable_cache=False)
def one(number: int) -> int:
    return number + 1

@pipeline(enable_cache=False)
def five():
    number = one(0)
    for _ in range(4):
        number = one(number)

if __name__ == "__main__":
    client = Client()
    if sys.argv[1] == "local_oom":
        client.create_flavor("zenml_ext.local.flavor.LocalOomFlavor", Kind.ORCHESTRATOR)
        client.create_stack_component(
            "local_oom", flavor="local_oom", component_type=Kind.ORCHESTRATOR, configuration={})
        client.create_stack(
            "local_oom", {Kind.ORCHESTRATOR: "local_oom", Kind.ARTIFACT_STORE: "default"})
    client.activate_stack(sys.argv[1])
    five()
    begin = time.perf_counter()
    five()
    print("SECONDS", (time.perf_counter() - begin) / 5)
"""


def local_steps():
    """Seconds a step takes on ZenML's local orchestrator, and on ours."""
    found = {}
    with tempfile.TemporaryDirectory() as home:
        Path(home, "five.py").write_text(FIVE)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("ZENML_", "MLOPS_EXT_"))}
        environment = {
            **kept,
            "ZENML_CONFIG_PATH": f"{home}/config",
            "ZENML_LOCAL_STORES_PATH": f"{home}/stores",
            "MLOPS_EXT_MEMORY_HISTORY": f"{home}/history.sqlite",
            "ZENML_ANALYTICS_OPT_IN": "false",
            "AUTO_OPEN_DASHBOARD": "false",
        }
        for side, stack in (("bare", "default"), ("ours", "local_oom")):
            done = subprocess.run(
                [sys.executable, "five.py", stack],
                cwd=home,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            (line,) = (one for one in done.stdout.splitlines() if one.startswith("SECONDS"))
            found[side] = float(line.split()[1])
    return found


def measure(*, quick):
    count, repeats = (100, 3) if quick else (1000, 9)
    rows = {
        "api_calls_of_a_step": calls_of_a_step,
        "kill_to_next_pod": kill_to_next_pod(repeats, 0.05),
        "side_by_side": side_by_side(count, 1.0),
    }
    found = {
        name: {"bare": fresh(work, ours=False), "ours": fresh(work, ours=True)}
        for name, work in rows.items()
    }
    return {**found, "local_step": local_steps()}


def show(found):
    table = Table(title="Out-of-memory retries on Kubernetes (double of the API)")
    for column in ("", "bare ZenML", "zenml_ext", "ratio"):
        table.add_column(column, justify="left" if not column else "right")

    def row(label, bare, ours, unit="", digits=0):
        ratio = f"{ours / bare:.2f}" if bare else ""
        table.add_row(label, f"{bare:.{digits}f}{unit}", f"{ours:.{digits}f}{unit}", ratio)

    calls, kill, side, local = found.values()
    row("API calls of a step", calls["bare"], calls["ours"])
    row("kill to the next pod", kill["bare"]["seconds"], kill["ours"]["seconds"], " s", 2)
    row("API calls for it", kill["bare"]["calls"], kill["ours"]["calls"])
    label = f"{side['ours']['steps']} steps, 1 in 10 killed once"
    row(f"{label}: completed", side["bare"]["completed"], side["ours"]["completed"])
    for key, unit in (("seconds", " s"), ("round_s", " s"), ("calls_per_step", "")):
        row(f"{label}: {key}", side["bare"][key], side["ours"][key], unit, 2)
    row("a local step, in a process of its own for ours", local["bare"], local["ours"], " s", 2)
    Console(width=120).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    found = measure(quick=arguments.quick)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)


if __name__ == "__main__":
    main()
