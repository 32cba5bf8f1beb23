"""Traces of workflow tasks, and the two ways to replay them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

GB = 1e9
NODE = 128e9
"""Memory of a node in bytes: no allocation is larger. No task of the traces needs as much."""
LEAST = 8 * 1024**2
"""No allocation is smaller."""
FEWEST = 34
"""Task types with fewer instances are left out, as in the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run of a task type: sizes in bytes, run time in hours, times in ms since 1970."""

    size: float
    peak: float
    hours: float
    request: float
    submit: float
    complete: float


class Method(Protocol):
    """A way to allocate memory to the tasks of one type."""

    def first(self, size: float, request: float) -> float:
        """Bytes for the first attempt of a task."""
        ...

    def retry(self, allocated: float, kills: int, size: float, request: float) -> float:
        """Bytes for the attempt after the *kills*-th kill, which had *allocated*."""
        ...

    def add(self, size: float, peak: float, hours: float) -> None:
        """Learn of a task that has ended."""
        ...


@dataclass(slots=True, kw_only=True)
class Score:
    """Waste in GB·h and number of kills."""

    waste: float = 0.0
    kills: int = 0


def load(path: Path, *, use_size: bool) -> dict[str, list[Task]]:
    """The tasks of each type that the protocol looks at, in the order of the file.

    Rows without a positive rss are dropped first; then types with fewer than 34 instances or
    with a run time of zero.
    """
    types: dict[str, list[Task]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            numbers = {name: _number(row[name]) for name in ("rss", "rchar", "realtime", "memory")}
            if not numbers["rss"] > 0:
                continue
            types.setdefault(row["process"], []).append(
                Task(
                    size=numbers["rchar"] if use_size else math.nan,
                    peak=numbers["rss"],
                    hours=numbers["realtime"] / 3.6e6,
                    request=numbers["memory"],
                    submit=_number(row["submit"]),
                    complete=_number(row["complete"]),
                )
            )
    return {
        process: tasks
        for process, tasks in types.items()
        if len(tasks) >= FEWEST and all(task.hours > 0 for task in tasks)
    }


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def sizey(tasks: Sequence[Task], seed: int) -> Iterator[tuple[Task, bool]]:
    """(task, whether it counts) in the paper's order: 30 % history, then 70 % one by one.

    The permutation is that of scikit-learn's ``train_test_split(range(n), test_size=0.7,
    random_state=seed)``: of ``RandomState(seed).permutation(n)`` the first ceil(0.7 n) are
    online, in that order; the rest comes before, as history.
    """
    import numpy as np

    order = np.random.RandomState(seed).permutation(len(tasks)).tolist()
    online = math.ceil(0.7 * len(tasks))
    for index in order[online:]:
        yield tasks[index], False
    for index in order[:online]:
        yield tasks[index], True


def run_sizey(method: Method, tasks: Sequence[Task], seed: int, ttf: float) -> Score:
    """What *method* costs by the paper's protocol."""
    score = Score()
    for task, counts in sizey(tasks, seed):
        if counts:
            attempt(method, task, ttf, score)
        method.add(task.size, task.peak, task.hours)
    return score


def run_arrival(method: Method, tasks: Sequence[Task], ttf: float) -> Score:
    """What *method* costs from a cold start.

    Tasks are decided in the order of their submission; known by then are those that had
    completed, as recorded. Retries do not move later tasks.
    """
    score = Score()
    ended = sorted(tasks, key=lambda task: task.complete)
    known = 0
    for task in sorted(tasks, key=lambda task: task.submit):
        while known < len(ended) and ended[known].complete <= task.submit:
            method.add(ended[known].size, ended[known].peak, ended[known].hours)
            known += 1
        attempt(method, task, ttf, score)
    return score


def attempt(method: Method, task: Task, ttf: float, score: Score) -> None:
    """Run *task* until it fits: each kill wastes its allocation for *ttf* of the run time."""
    allocated = _clip(method.first(task.size, task.request), task.request)
    kills = 0
    while allocated < task.peak and allocated < NODE:
        score.waste += allocated * task.hours * ttf / GB
        kills += 1
        following = method.retry(allocated, kills, task.size, task.request)
        # A method that would ask for the same again doubles instead, or it would never end.
        following = following if following >= 1.01 * allocated else 2 * allocated
        allocated = _clip(following, 2 * allocated)
    score.kills += kills
    score.waste += (allocated - task.peak) * task.hours / GB


def _clip(size: float, otherwise: float) -> float:
    return min(max(size if math.isfinite(size) and size > 0 else otherwise, LEAST), NODE)
