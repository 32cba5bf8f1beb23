"""How long the deadlock check takes, how much memory, how many requests: 10,000 workers and more.

Run: python benchmarks/clearml_check.py [--json] [--quick]

Each plan is built and checked in a process of its own; seconds are the median of the repeats, the
memory is that process's peak. "live" asks a double of the API server, in the same process, for
the same number of workers and queues; its seconds are mostly the double's, and "CPU s" is what the
check's own thread computed, the reading of the answers included. There is no peer: ClearML itself
checks nothing.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from mlops_ext.queues.check import Pipeline, Step, Topology, Worker, check

WORKERS, QUEUES, STEPS = 10_000, 1_000, 1_000
PLANS = ("separate", "shared", "random", "chain", "live")
LIMIT_S, LIMIT_MIB = 1.0, 500
FAR = dt.datetime(2999, 1, 1, tzinfo=dt.timezone.utc)


def build(plan, workers, queues, steps):
    """A plan of the given size; seeded, so that every run checks the same one."""
    rng = random.Random(7)
    names = [f"q{number}" for number in range(queues)]
    services = [f"services-{number}" for number in range(20)]
    pipelines_count = 1 if plan == "chain" else max(1, steps // 10)
    of_controllers = names if plan == "random" else services

    def listens():
        mine = rng.sample(names, rng.randint(1, 5))
        if plan == "shared":
            return (*mine, *rng.sample(services, 2))
        return mine

    agents = [Worker(name=f"w{n}", queues=tuple(listens())) for n in range(workers)]
    served = {queue for agent in agents for queue in agent.queues}
    missing = [queue for queue in (*names, *services) if queue not in served]
    agents += [Worker(name=f"only-{queue}", queues=(queue,), slots=50) for queue in missing]
    per_pipeline = steps // pipelines_count
    pipelines = [
        Pipeline(
            name=f"p{number}",
            queue=rng.choice(of_controllers),
            instances=2 if plan != "chain" else 1,
            steps=tuple(
                Step(
                    name=f"s{at}",
                    queue=rng.choice(names),
                    after=(f"s{at - 1}",) if at and plan == "chain" else (),
                )
                for at in range(per_pipeline)
            ),
        )
        for number in range(pipelines_count)
    ]
    return Topology(workers=tuple(agents), pipelines=tuple(pipelines))


def measure(plan, size, repeats):
    """One row, measured in this very process."""
    row = measure_live(size, repeats) if plan == "live" else measure_plan(plan, size, repeats)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"plan": plan, **row, "peak_mib": round(peak_kib / 1024, 1)}


def measure_plan(plan, size, repeats):
    topology = build(plan, *size)
    verdict, times = timed(repeats, lambda: check(topology))
    shown = verdict.outcome.value + ("" if verdict.exact else " (cautious)")
    return {"verdict": shown, **times, "requests": 0}


def timed(repeats, call):
    """The last result of *call*; its first and median seconds, and this thread's CPU seconds."""
    seconds, cpu = [], []
    for _ in range(repeats):
        begin, own = time.perf_counter(), time.thread_time()
        result = call()
        cpu.append(time.thread_time() - own)
        seconds.append(time.perf_counter() - begin)
    return result, {
        "seconds_first": round(seconds[0], 4),
        "seconds": round(statistics.median(seconds), 4),
        "cpu_seconds": round(statistics.median(cpu), 4),
    }


def measure_live(size, repeats):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.doubles.clearml.server import ACCESS_KEY, SECRET_KEY, ApiDouble

    from clearml_ext.check.plans import Node, Plan
    from clearml_ext.check.preflight import check_live
    from clearml_ext.server.client import Client
    from clearml_ext.settings import ClearmlSettings

    topology = build("separate", *size)
    names = sorted({queue for worker in topology.workers for queue in worker.queues})
    with ApiDouble(names) as double:
        number = {row["name"]: key for key, row in double.store.queues.items()}
        for worker in topology.workers:
            double.store.workers_register(
                {"worker": worker.name, "queues": [number[queue] for queue in worker.queues]}
            )
            double.store.workers[worker.name]["last_activity_time"] = FAR
        steps = [step for pipeline in topology.pipelines for step in pipeline.steps]
        plan = Plan(
            name="big",
            nodes=tuple(Node(name=f"{at}", queue=step.queue) for at, step in enumerate(steps)),
        )
        clients = []

        def ask():
            clients.append(Client(double.url, key=ACCESS_KEY, secret=SECRET_KEY, timeout_s=120))
            return check_live(plan, "services-0", ClearmlSettings(), client=clients[-1])

        result, times = timed(repeats, ask)
    return {"verdict": result.answer.value, **times, "requests": len(clients[-1].calls)}


def in_own_process(plan, size, repeats):
    command = [sys.executable, __file__, "--one", plan, *map(str, size), str(repeats)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--quick", action="store_true", help="a tenth of the size")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        plan, *numbers = arguments.one
        *size, repeats = map(int, numbers)
        print(json.dumps(measure(plan, size, repeats)))
        return
    size = (WORKERS, QUEUES, STEPS)
    if arguments.quick:
        size = tuple(number // 10 for number in size)
    rows = [in_own_process(plan, size, 1 if plan == "live" else 5) for plan in PLANS]
    holds = all(
        row["cpu_seconds" if row["plan"] == "live" else "seconds_first"] < LIMIT_S
        and row["peak_mib"] < LIMIT_MIB
        and row["requests"] <= 3
        for row in rows
    )
    if arguments.json:
        keys = ("workers", "queues", "steps")
        print(json.dumps({**dict(zip(keys, size, strict=True)), "rows": rows, "holds": holds}))
    else:
        print("{:,} workers, {:,} queues, {:,} steps".format(*size))
        print(
            f"{'plan':<10}{'verdict':<20}{'first s':>9}{'median s':>10}{'CPU s':>8}{'MiB':>8}"
            f"{'requests':>10}"
        )
        for row in rows:
            print(
                f"{row['plan']:<10}{row['verdict']:<20}{row['seconds_first']:>9.3f}"
                f"{row['seconds']:>10.3f}{row['cpu_seconds']:>8.3f}{row['peak_mib']:>8.0f}{row['requests']:>10}"
            )
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
