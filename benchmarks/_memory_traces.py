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
_MIB = 1024.0**2
_COLUMNS = {
    "process": (("process", 1.0), ("task", 1.0), ("Cmd", 1.0)),
    "size": (("input_bytes", 1.0), ("InputSize", 1.0), ("rchar", 1.0)),
    "peak": (("rss", 1.0), ("ResidentSetSize_RAW", 1024.0), ("MemoryUsage", _MIB)),
    "hours": (("realtime", 1 / 3.6e6), ("RemoteWallClockTime", 1 / 3600)),
    "request": (("memory", 1.0), ("RequestMemory", _MIB)),
    "submit": (("submit", 1.0), ("QDate", 1000.0)),
    "complete": (("complete", 1.0), ("CompletionDate", 1000.0)),
    "status": (("status", 1.0), ("JobStatus", 1.0)),
}
"""What is read, by the names of Nextflow's traces and of HTCondor's job ads, and its unit. A size
that is known before the start (input_bytes) comes before one that is counted during the run."""
_COMPLETED = {"", "COMPLETED", "CACHED", "4"}
_NEAR = 0.9
"""A failed run that used more than this much of its memory counts as killed for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One run of a task type: sizes in bytes, run time in hours, times in ms since 1970.

    One that was *killed* had its request as limit; methods are told of it, and it is not played.
    """

    size: float
    peak: float
    hours: float
    request: float
    submit: float
    complete: float
    killed: bool = False


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

    def kill(self, size: float, limit: float) -> None:
        """Learn of a task that was killed at *limit* and not tried again."""
        ...


@dataclass(slots=True, kw_only=True)
class Score:
    """Waste in GB·h and number of kills."""

    waste: float = 0.0
    kills: int = 0


def load(path: Path, *, use_size: bool) -> dict[str, list[Task]]:
    """The tasks of each type that the protocol looks at, in the order of the file.

    Rows without a positive peak are dropped first; then types with fewer than 34 instances or
    with a run time of zero. Failed rows are no instances: those that had come near their memory are
    kills, the others are dropped.
    """
    types: dict[str, list[Task]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        found = {
            ours: next(
                ((name, unit) for name, unit in names if name in (rows.fieldnames or ())), None
            )
            for ours, names in _COLUMNS.items()
        }
        for index, row in enumerate(rows):
            numbers = {
                ours: _number(row[column[0]]) * column[1] if column else math.nan
                for ours, column in found.items()
            }
            failed = found["status"] is not None and row[found["status"][0]] not in _COMPLETED
            killed = failed and numbers["peak"] > _NEAR * numbers["request"]
            if not numbers["peak"] > 0 or (failed and not killed):
                continue
            process = row[found["process"][0]] if found["process"] else path.stem
            known = math.isfinite(numbers["submit"]) and math.isfinite(numbers["complete"])
            types.setdefault(process, []).append(
                Task(
                    size=numbers["size"] if use_size else math.nan,
                    peak=numbers["peak"],
                    hours=numbers["hours"],
                    request=numbers["request"],
                    submit=numbers["submit"] if known else float(index),
                    complete=numbers["complete"] if known else index + 0.5,
                    killed=killed,
                )
            )
    return {process: tasks for process, tasks in types.items() if _is_played(tasks)}


def _is_played(tasks: Sequence[Task]) -> bool:
    ended = [task for task in tasks if not task.killed]
    return len(ended) >= FEWEST and all(task.hours > 0 for task in ended)


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


def run_sizey(
    method: Method, tasks: Sequence[Task], seed: int, ttf: float, leaks: int = 0
) -> Score:
    """What *method* costs by the paper's protocol; before each *leaks*-th task one leaks."""
    score = Score()
    for number, (task, counts) in enumerate(sizey(tasks, seed), start=1):
        if leaks and number % leaks == 0:
            leak(method, task)
        if task.killed:
            method.kill(task.size, task.request)
            continue
        if counts:
            attempt(method, task, ttf, score)
        method.add(task.size, task.peak, task.hours)
    return score


def leak(method: Method, task: Task, attempts: int = 5) -> None:
    """A run that needs more than it can ever get: killed at each of *attempts* allocations.

    What it costs is the same for all methods but for their allocations, and is not counted.
    """
    allocated = _clip(method.first(task.size, task.request), task.request)
    for kills in range(1, attempts):
        following = method.retry(allocated, kills, task.size, task.request)
        allocated = _clip(max(following, 1.01 * allocated), 2 * allocated)
    method.kill(task.size, allocated)


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
            past = ended[known]
            if past.killed:
                method.kill(past.size, past.request)
            else:
                method.add(past.size, past.peak, past.hours)
            known += 1
        if task.killed:
            continue
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
