"""Growing in place, simulated on curves of memory over time.

Format: one JSON object a line, a run each, in the order in which they ran::

    {"process": "align", "size": 2.5e9, "request": 8e9, "curve": [[0, 1.1e8], [10, 4.2e8], ...]}

``curve`` is (seconds since the start, bytes in use) at every sample, the last one at the end of
the run; ``size`` (input bytes, or null) and ``request`` (bytes) are known before.

Each task type starts cold. A static attempt whose allocation is exceeded at a sample is killed
there, which wastes all it was allocated until then. In place, the limit is raised at the sample
that reaches the threshold; memory that goes from below the threshold to beyond the limit between
two samples kills the attempt. Area waste = allocated minus used memory-time of the attempt that
succeeds, plus all that was allocated to those that failed. The static oracle allocates exactly
the peak: no static allocation is better.
"""

from __future__ import annotations

import functools
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlops_ext.memory import (
    Attempt,
    Caps,
    Evidence,
    Features,
    InPlace,
    Quantity,
    Retry,
    TaskKey,
)
from mlops_ext.memory.history import HistoryPolicy, InMemoryHistory

GB_HOUR = 1e9 * 3600
LATENCIES_S = (0, 15, 60)
"""Seconds until a resize takes effect: at once, and the range that clusters show."""
SHAPES = {
    "ramp": (1.0, (900, 3600)),
    "late": (6.0, (900, 3600)),
    "flat": (0.05, (900, 3600)),
    "burst": (40.0, (400, 1800)),
    "short": (2.0, (30, 240)),
}
"""Made-up curves: usage grows with this power of the time, for so many seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run of a task with its memory over time: (seconds, bytes) pairs."""

    process: str
    size: float | None
    request: int
    curve: Sequence[tuple[float, int]]

    @property
    def peak(self) -> int:
        return max(used for _, used in self.curve)

    @property
    def runtime_s(self) -> float:
        return self.curve[-1][0]


@dataclass(slots=True, kw_only=True)
class Area:
    """Waste in GB·h, kills and resizes."""

    waste: float = 0.0
    kills: int = 0
    resizes: int = 0


def load_curves(path: Path) -> list[Run]:
    """The runs in *path*."""
    runs = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        curve = tuple((float(when), int(used)) for when, used in row["curve"])
        runs.append(
            Run(process=row["process"], size=row["size"], request=int(row["request"]), curve=curve)
        )
    return runs


def make_curves(seed: int = 0, runs: int = 60) -> Iterable[Run]:
    """Made-up runs: a ramp, late growth, a plateau, a burst at the end, and short tasks."""
    rng = random.Random(seed)
    for _ in range(runs):
        for process, (shape, seconds) in SHAPES.items():
            size = rng.uniform(1e9, 8e9)
            peak = size * rng.uniform(0.8, 1.2) + 3e8
            length = rng.uniform(*seconds)
            samples = [
                (length * k / 90, int(2e8 + (peak - 2e8) * (k / 90) ** shape)) for k in range(91)
            ]
            yield Run(process=process, size=size, request=int(16e9), curve=samples)


def run_static(run: Run, limit: float) -> tuple[float, bool]:
    """(GB·h allocated, whether it was killed) of an attempt with a fixed *limit*."""
    for when, used in run.curve:
        if used > limit:
            return limit * when / GB_HOUR, True
    return limit * run.runtime_s / GB_HOUR, False


def run_in_place(
    run: Run, plan: InPlace, limit: Quantity, latency_s: float
) -> tuple[float, bool, Quantity, int]:
    """(GB·h allocated, whether it was killed, last limit, resizes), from *limit* on.

    A resize takes effect *latency_s* after the sample that called for it; until then the limit is
    the old one. One that would come after the end counts as made all the same.
    """
    allocated, before, resizes, wanted = 0.0, 0.0, 0, limit
    under_way: list[tuple[float, Quantity]] = []
    for when, used in run.curve:
        while under_way and under_way[0][0] <= when:
            effective, grown = under_way.pop(0)
            allocated += limit * (effective - before) / GB_HOUR
            before, limit = effective, grown
        allocated += limit * (when - before) / GB_HOUR
        before = when
        if used > limit:
            return allocated, True, limit, resizes
        following = plan.next_limit(wanted, used)
        if following is not None:
            wanted, resizes = following, resizes + 1
            under_way.append((when + latency_s, following))
    return allocated, False, wanted, resizes


class Simulation:
    """One way to run the tasks, with the history it has gathered."""

    def __init__(self, *, latency_s: float | None = None) -> None:
        self.policy = HistoryPolicy(records=InMemoryHistory())
        self.latency_s = latency_s

    def run(self, run: Run, area: Area) -> None:
        key, features = TaskKey(pipeline="curves", step=run.process), Features(input_bytes=run.size)
        plan = self.policy.decide(key, features, Quantity(run.request), Caps())
        grows = plan.in_place if self.latency_s is not None else None
        limit = (grows.start if grows else plan.first_limit) or Quantity(run.request)
        kills, resized = 0, 0
        while True:
            if grows and self.latency_s is not None:
                allocated, killed, limit, resizes = run_in_place(run, grows, limit, self.latency_s)
                resized += resizes
            else:
                allocated, killed = run_static(run, limit)
            area.waste += allocated
            if not killed:
                break
            kills += 1
            ended = Attempt(memory=limit, oom_retries=kills - 1)
            decision = self.policy.on_failure(plan, ended, Evidence(oom_killed=True))
            memory = decision.memory if isinstance(decision, Retry) else None
            limit = memory or Quantity(2 * limit)
        area.kills += kills
        area.resizes += resized
        area.waste -= used_area(run)
        self.policy.observe(
            key,
            features,
            Quantity(run.peak),
            run.runtime_s,
            curve=run.curve,
            plan=plan,
            resizes_s=[self.latency_s or 0.0] * resized,
        )


def used_area(run: Run) -> float:
    """Memory-time in use, in GB·h: each sample stands for the time before it."""
    pairs = zip(run.curve, run.curve[1:], strict=False)
    return math.fsum(used * (when - before) for (before, _), (when, used) in pairs) / GB_HOUR


def simulate(runs: Sequence[Run]) -> dict[tuple[str, str], Area]:
    """The area of each (task type, method)."""
    ways: dict[str, Callable[[], Simulation]] = {
        "static ladder": Simulation,
        **{
            f"in place, {latency_s} s": functools.partial(Simulation, latency_s=latency_s)
            for latency_s in LATENCIES_S
        },
    }
    areas: dict[tuple[str, str], Area] = {}
    for process in dict.fromkeys(run.process for run in runs):
        of_type = [run for run in runs if run.process == process]
        wasted = [run.peak * run.runtime_s / GB_HOUR - used_area(run) for run in of_type]
        asked = [run.request * run.runtime_s / GB_HOUR - used_area(run) for run in of_type]
        areas[process, "request"] = Area(waste=math.fsum(asked))
        areas[process, "static oracle"] = Area(waste=math.fsum(wasted))
        for method, way in ways.items():
            area, simulation = Area(), way()
            for run in of_type:
                simulation.run(run, area)
            areas[process, method] = area
    return areas
