"""What out-of-memory retries cost on Kubernetes: bare ZenML against zenml_ext, in one run.

Both drive ZenML's own functions through the real Kubernetes client against the double of the
Kubernetes API in tests/, where pods end as told. Measured:

* api calls: calls for a step that starts, is looked at, and completes; must be the same;
* kill to follower: seconds from a pod's end by OOMKilled to the creation of what follows. Bare
  ZenML leaves it to Kubernetes, which starts a pod with the same memory (back-off, 10 s on a
  real cluster, is set to the double's 0.3 s here, so only our side of this row says something);
* side by side: many steps at once, of which one in ten is killed once: seconds a round of looks
  takes, calls a step, and whether all completed.

    python benchmarks/zenml_oom.py [--json] [--quick]
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kubernetes import client, config
from rich.console import Console
from rich.table import Table
from tests.kubedouble import Cluster
from zenml.enums import ExecutionStatus
from zenml.integrations.kubernetes import kube_utils

from mlops_ext.memory import DoublePolicy, MemoryPlan, MemorySettings, Quantity
from zenml_ext.kubernetes_api import KubeApi
from zenml_ext.kubernetes_book import StepRow
from zenml_ext.kubernetes_supervisor import Supervisor

RUN = str(uuid4())
LOOK = {"fail_on_container_waiting_reasons": ["ErrImagePull"], "max_retries": 3}
RUNNING, SUCCEEDED = kube_utils.JobStatus.RUNNING, kube_utils.JobStatus.SUCCEEDED


class Book:
    """A ZenML server that answers at once: the benchmark is about Kubernetes."""

    def plan(self, *_):
        return MemoryPlan(ladder=(Quantity.parse("1Mi"),), reason="benchmark")

    def newest_row(self, *_):
        return StepRow(identifier=uuid4(), status=ExecutionStatus.RUNNING)

    def is_stopping(self, *_):
        return False

    def beat(self, *_):
        return True

    def record(self, *_):
        return None


def facts(name):
    policy = DoublePolicy(settings=MemorySettings())
    settings = SimpleNamespace(in_place=True, max_memory=None, pending_timeout_min=10)
    return SimpleNamespace(name=name, family="f", policy=policy, max_memory=None, settings=settings)


def manifest(name, ends, *, retries=0):
    labels = {"run_id": RUN, "step_name": name}
    container = {
        "name": "main",
        "image": "i",
        "resources": {"limits": {"memory": "1Mi"}, "requests": {"memory": "1Mi"}},
    }
    return {
        "metadata": {"name": name, "labels": labels, "annotations": {"zenml.io/step-name": name}},
        "spec": {
            "backoffLimit": retries,
            "template": {
                "metadata": {"labels": dict(labels), "annotations": {"double/ends": ends}},
                "spec": {"restartPolicy": "Never", "containers": [container]},
            },
        },
    }


class Side:
    """Bare ZenML, or ours: what its orchestrator's process does about step Jobs."""

    def __init__(self, cluster, *, ours):
        self.cluster, self.ours = cluster, ours
        self.batch, self.core = client.BatchV1Api(), client.CoreV1Api()
        self.supervisor = Supervisor(facts, book=Book())
        self.api = KubeApi(self.batch, self.core, "zenml")

    def start(self, name, ends, retries=0):
        body = manifest(name, ends, retries=retries)
        if self.ours:
            self.supervisor.create(self.api, self.supervisor.prepare(body, facts(name), RUN))
        else:
            kube_utils.create_job(batch_api=self.batch, namespace="zenml", job_manifest=body)

    def look(self, name):
        check = self.supervisor.check if self.ours else kube_utils.check_job_status
        found = check(
            batch_api=self.batch, core_api=self.core, namespace="zenml", job_name=name, **LOOK
        )
        return found[0]

    def wait(self, names, interval_s):
        """Look at every step in rounds, as ZenML's monitoring loop does; seconds of a round."""
        left, rounds, results = list(names), [], {}
        while left:
            begin = time.perf_counter()
            for name in list(left):
                found = self.look(name)
                if found is not RUNNING:
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


def kill_to_follower(repeats, interval_s):
    def work(cluster, side):
        """Medians: from the pod's end to the follower's creation, and the calls made for it."""
        times, calls = [], []
        for number in range(repeats):
            name = f"step{number}"
            side.start(name, "137 OOMKilled 0;0 Completed 0")
            ended = []

            def seen(name=name):
                pods = cluster.list("pods", f"job-name={name}")
                return [p for p in pods if p["status"]["phase"] == "Failed"]

            cluster.wait_for(seen)
            ended = time.perf_counter()
            begin = len(cluster.calls)
            while not cluster.list("jobs", f"step_name={name},mlops-ext.io/attempt=2"):
                side.look(name)
                time.sleep(interval_s)
            times.append(time.perf_counter() - ended)
            calls.append(len(cluster.calls) - begin)
            side.wait([name], interval_s)
        return statistics.median(times), statistics.median(calls)

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
        good = sum(found is SUCCEEDED for found in results.values())
        mean = len(cluster.calls) / count
        return {
            "steps": count,
            "completed": good,
            "seconds": seconds,
            "round_s": statistics.median(rounds),
            "calls_per_step": mean,
        }

    return work


def measure(*, quick):
    count, repeats = (100, 3) if quick else (1000, 9)
    kill, kill_calls = fresh(kill_to_follower(repeats, 0.05), ours=True)
    return {
        "api_calls_of_a_step": {
            "bare": fresh(calls_of_a_step, ours=False),
            "ours": fresh(calls_of_a_step, ours=True),
        },
        "kill_to_follower": {"ours_s": kill, "ours_calls": kill_calls},
        "side_by_side": {
            "bare": fresh(side_by_side(count, 1.0), ours=False),
            "ours": fresh(side_by_side(count, 1.0), ours=True),
        },
    }


def show(found):
    table = Table(title="Out-of-memory retries on Kubernetes (double of the API)")
    for column in ("", "bare ZenML", "zenml_ext", "ratio"):
        table.add_column(column, justify="left" if not column else "right")
    calls = found["api_calls_of_a_step"]
    table.add_row(
        "API calls of a step",
        str(calls["bare"]),
        str(calls["ours"]),
        f"{calls['ours'] / calls['bare']:.2f}",
    )
    kill = found["kill_to_follower"]
    table.add_row("kill to bigger Job, looking every 0.05 s", "-", f"{kill['ours_s']:.2f} s", "")
    table.add_row("API calls for it", "-", f"{kill['ours_calls']:.0f}", "")
    bare, ours = found["side_by_side"]["bare"], found["side_by_side"]["ours"]
    label = f"{ours['steps']} steps, 1 in 10 killed once"
    table.add_row(f"{label}: completed", str(bare["completed"]), str(ours["completed"]), "")
    for key, unit in (("seconds", "s"), ("round_s", "s"), ("calls_per_step", "")):
        table.add_row(
            f"{label}: {key}",
            f"{bare[key]:.2f} {unit}",
            f"{ours[key]:.2f} {unit}",
            f"{ours[key] / bare[key]:.2f}",
        )
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
