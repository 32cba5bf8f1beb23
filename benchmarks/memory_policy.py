"""Memory policies on traces of real tasks: GB·h wasted, and how often a task was killed.

    python benchmarks/memory_policy.py TRACE... [--protocol sizey|arrival] [--ttf 1.0|0.5]
        [--feature rchar|none|both] [--seeds N] [--leaks N] [--json]

A trace is a CSV file, named after its workflow, with the columns process, submit, start, complete
(ms since 1970), realtime (ms), memory (what the author asked for), rss (the peak), rchar (bytes
read: the input size) and status, in bytes where not said otherwise. Job ads of HTCondor as CSV are
read by their own names (Cmd, QDate, RemoteWallClockTime, RequestMemory, MemoryUsage). Where
a column input_bytes is there, that is the input size, known before the start. A row that failed
near its memory is a kill of which the methods are told.

Protocol "sizey" (Bader et al., "Sizey", IEEE CLUSTER 2024): task types with at least 34
instances and no run time of zero; per type a random 30 % is history, the other 70 % come one by
one in random order, and each is added to the history after it ran. Seed k of N is 1996 + k; it
seeds the split of each type anew. Protocol "arrival": from a cold start, in the order of
submission, knowing what had completed by then; it has no seeds.

Waste = memory-time of failed attempts (all of the allocation for --ttf of the run time) +
(allocation - rss) x run time of the successful one, in GB·h of 1e9 bytes. Attempts are limited
to a node of 128 GB. With --leaks N one run leaks before each N-th task: it is killed five times
and never gets through, and the methods go on from what they were told.

"ours" is the history policy as it ships; the rows below it are what else memory.prefer can say. It
is told --ttf, as a user would set memory.time_to_failure, and of each kill as of each success.

With --curves FILE instead of traces: growing in place against the static ladder and the static
oracle; benchmarks/_memory_curves.py tells the format, and --make-curves FILE writes made-up ones.
With --speed: median time of a decision from a SQLite history with 1,000 runs of the task, in CPU
time, beside that of a loop of 100,000 additions, which tells how fast the machine is now.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _memory_baselines import BASELINES
from _memory_curves import load_curves, make_curves, simulate
from _memory_traces import NODE, Method, Score, Task, load, run_arrival, run_sizey
from mlops_ext.memory import (
    Attempt,
    Caps,
    Evidence,
    Features,
    MemoryPlan,
    MemorySettings,
    Quantity,
    Retry,
    TaskKey,
)
from mlops_ext.memory.history import History, HistoryPolicy, InMemoryHistory

FIRST_SEED = 1996
"""The paper's."""
WITHOUT = "no input"
"""What is measured without the input's size."""


class Ours:
    """The history policy, through the interface that orchestrators use."""

    KEY = TaskKey(pipeline="trace", step="task")
    CAPS = Caps(node=Quantity(int(NODE)))

    def __init__(self, ttf: float, **settings: Any) -> None:
        settings = MemorySettings(time_to_failure=ttf, **settings)
        self.policy = HistoryPolicy(records=InMemoryHistory(), settings=settings)
        self.plan = MemoryPlan(ladder=(), reason="")

    def first(self, size: float, request: float) -> float:
        features, wanted = Features(input_bytes=size), Quantity(int(request))
        self.plan = self.policy.decide(self.KEY, features, wanted, self.CAPS)
        return float(self.plan.first_limit or request)

    def retry(self, allocated: float, kills: int, size: float, request: float) -> float:
        del request
        limit = Quantity(int(allocated))
        ended = Attempt(memory=limit, oom_retries=kills - 1)
        self.policy.observe(
            self.KEY, Features(input_bytes=size), limit, 0.0, censored=True, plan=self.plan
        )
        decision = self.policy.on_failure(self.plan, ended, Evidence(oom_killed=True))
        # Out of retries the task has failed; going on until it fits keeps the methods comparable.
        memory = decision.memory if isinstance(decision, Retry) else None
        return float(memory or 2 * allocated)

    def kill(self, size: float, limit: float) -> None:
        features = Features(input_bytes=size)
        self.policy.observe(self.KEY, features, Quantity(int(limit)), 0.0, censored=True)

    def add(self, size: float, peak: float, hours: float) -> None:
        features = Features(input_bytes=size)
        self.policy.observe(self.KEY, features, Quantity(int(peak)), hours * 3600, plan=self.plan)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One method on one task type of one workflow, with one seed."""

    workflow: str
    method: str
    tasks: Sequence[Task]
    seed: int | None
    ttf: float
    leaks: int = 0


def methods(ttf: float) -> dict[str, Callable[[], Method]]:
    """Every method, by its name in the tables."""
    others = {
        f"ours, {prefer}": functools.partial(Ours, ttf, prefer=prefer)
        for prefer in ("fewer-kills", "less-waste")
    }
    return {**BASELINES, "ours": functools.partial(Ours, ttf), **others}


def run(job: Job) -> tuple[str, str, Score]:
    """(workflow, method, score) of *job*."""
    method = methods(job.ttf)[job.method]()
    if job.seed is None:
        return job.workflow, job.method, run_arrival(method, job.tasks, job.ttf)
    return job.workflow, job.method, run_sizey(method, job.tasks, job.seed, job.ttf, job.leaks)


def measure(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Mean waste and kills per workflow and method, over the seeds."""
    if arguments.feature == "both":
        with_size = measure(argparse.Namespace(**{**vars(arguments), "feature": "rchar"}))
        without = measure(argparse.Namespace(**{**vars(arguments), "feature": "none"}))
        return with_size + [
            {**result, "workflow": f"{result['workflow']}, {WITHOUT}"} for result in without
        ]
    use_size = arguments.feature == "rchar"
    seeds: list[int | None] = [None]
    if arguments.protocol == "sizey":
        seeds = [FIRST_SEED + k for k in range(arguments.seeds)]
    names = [
        name for name in methods(arguments.ttf) if not arguments.method or name in arguments.method
    ]
    workflows = {path.stem: load(path, use_size=use_size) for path in arguments.traces}
    jobs = [
        Job(
            workflow=workflow,
            method=name,
            tasks=tasks,
            seed=seed,
            ttf=arguments.ttf,
            leaks=arguments.leaks,
        )
        for workflow, types in workflows.items()
        for name in names
        for tasks in types.values()
        for seed in seeds
    ]
    jobs.sort(key=lambda job: -len(job.tasks))
    totals = {(workflow, name): Score() for workflow in workflows for name in names}
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for workflow, name, score in pool.map(run, jobs, chunksize=4):
            total = totals[workflow, name]
            total.waste += score.waste
            total.kills += score.kills
    return [
        {
            "workflow": workflow,
            "method": name,
            "waste_gbh": total.waste / len(seeds),
            "kills": total.kills / len(seeds),
        }
        for (workflow, name), total in totals.items()
    ]


def table(results: Sequence[dict[str, object]]) -> str:
    """The results as text: a row for each method, "waste / kills" for each workflow and in all."""
    cells: dict[str, dict[str, tuple[float, float]]] = {}
    for result in results:
        waste, kills = float(str(result["waste_gbh"])), float(str(result["kills"]))
        cells.setdefault(str(result["method"]), {})[str(result["workflow"])] = (waste, kills)
    names = list(dict.fromkeys(str(result["workflow"]) for result in results))
    without = [name for name in names if name.endswith(WITHOUT)]
    workflows = [name for name in names if name not in without]
    columns = [*workflows, "all", *([f"all, {WITHOUT}"] if without else [])]
    lines = ["GB·h wasted / kills".ljust(22) + "".join(f"{name:>20}" for name in columns)]
    for method, row in cells.items():
        pairs = [row[name] for name in workflows]
        for summed in filter(None, (workflows, without)):
            some = [row[name] for name in summed]
            pairs.append((sum(waste for waste, _ in some), sum(kills for _, kills in some)))
        lines.append(
            method.ljust(22)
            + "".join(f"{f'{waste:,.1f} / {kills:,.0f}':>20}" for waste, kills in pairs)
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("traces", metavar="TRACE", nargs="*", type=Path)
    parser.add_argument("--protocol", choices=["sizey", "arrival"], default="sizey")
    parser.add_argument("--ttf", type=float, default=1.0, help="time to failure, 1.0 or 0.5")
    parser.add_argument("--feature", choices=["rchar", "none", "both"], default="rchar")
    parser.add_argument("--leaks", type=int, default=0, metavar="N", help="0: none leaks")
    parser.add_argument("--seeds", type=int, default=5, metavar="N")
    parser.add_argument("--method", action="append", metavar="NAME", help="only this; repeatable")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--curves", type=Path, metavar="FILE")
    parser.add_argument("--make-curves", type=Path, metavar="FILE")
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one seed")
    parser.add_argument("--json", action="store_true")
    parsed = parser.parse_args(arguments)
    if not (parsed.traces or parsed.curves or parsed.make_curves or parsed.speed):
        parser.error("name at least one trace, or --curves FILE")
    if not 0 < parsed.ttf <= 1 or parsed.seeds < 1:
        parser.error("expected 0 < --ttf <= 1 and --seeds of 1 or more")
    parsed.seeds = 1 if parsed.quick else parsed.seeds
    return parsed


def measure_curves(arguments: argparse.Namespace) -> list[dict[str, object]]:
    """Area waste, kills and resizes per task type and method."""
    areas = simulate(load_curves(arguments.curves))
    return [
        {
            "workflow": process,
            "method": method,
            "waste_gbh": area.waste,
            "kills": area.kills,
            "resizes": area.resizes,
        }
        for (process, method), area in areas.items()
    ]


def measure_speed(runs: int = 1000, decisions: int = 300) -> dict[str, float]:
    """Median CPU milliseconds of a decision, and of one in a process that has not read yet."""
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        history = History(Path(folder) / "history.sqlite")
        policy = HistoryPolicy(records=history)
        for _ in range(runs):
            size = rng.uniform(1e8, 1e9)
            peak = Quantity(int(2 * size * rng.uniform(0.9, 1.1)))
            policy.observe(Ours.KEY, Features(input_bytes=size), peak, rng.uniform(50, 100))
        spent = {"decision_ms": [], "first_decision_ms": []}
        for number in range(decisions):
            fresh = HistoryPolicy(records=history)
            asked = [("decision_ms", policy)]
            asked += [("first_decision_ms", fresh)] if number % 50 == 0 else []
            for name, asked_policy in asked:
                features = Features(input_bytes=rng.uniform(1e8, 1e9))
                start = time.process_time()
                asked_policy.decide(Ours.KEY, features, None, Ours.CAPS)
                spent[name].append(1000 * (time.process_time() - start))
    medians = {name: statistics.median(times) for name, times in spent.items()}
    return {**medians, "loop_ms": min(_loop_ms() for _ in range(5))}


def _loop_ms(additions: int = 100_000) -> float:
    start, total = time.process_time(), 0
    for number in range(additions):
        total += number
    return 1000 * (time.process_time() - start)


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = parse(arguments)
    if parsed.make_curves:
        lines = [json.dumps(dataclasses.asdict(run)) for run in make_curves()]
        parsed.make_curves.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return 0
    if parsed.speed:
        print(json.dumps(measure_speed()))
        return 0
    results = measure_curves(parsed) if parsed.curves else measure(parsed)
    if parsed.json:
        json.dump({"results": results}, sys.stdout, indent=1)
        print()
    else:
        print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
