"""What is kept of a task's earlier runs."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mlops_ext.memory.history.allocations import Outcome
from mlops_ext.memory.model import Curve, TaskKey

# Numbers of two histories differ in what is left after division by this, those of one do not.
BEGUN_ANEW = 2**40
# Points kept of a curve: one for each 3 % of the peak.
CURVE_POINTS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One run of a task.

    Attributes:
        peak: bytes; for a censored observation the limit at which it was killed.
        runtime_s: how long it ran.
        version: code or image version of the task.
        input_bytes: input size known before the start, or None.
        censored: it was killed: the peak is *at least* `peak`.
        curve: running maximum of its memory, at most `CURVE_POINTS` points.
        outcomes: what this run would have met on the ladders of each predictor, by its name: one
            for each of `KILL_PRICES`, so that whoever reads them can weigh them as they prefer.
        first_limit: first allocation of the plan that was in force, or None.
        resizes_s: seconds until each resize took effect; infinite for one that never did.
        ratio: the peak as a multiple of the median that was predicted for it, or None.
    """

    peak: int
    runtime_s: float
    version: str = ""
    input_bytes: float | None = None
    censored: bool = False
    curve: Curve = ()
    outcomes: Mapping[str, Sequence[Outcome]] = field(default_factory=dict)
    first_limit: int | None = None
    ratio: float | None = None
    resizes_s: Sequence[float] = ()


class Records(Protocol):
    """A store of observations, kept per pipeline and step in the order of arrival."""

    def append(self, key: TaskKey, observation: Observation) -> None:
        """Add *observation*; raise HistoryError where it could not be kept."""
        ...

    def read(
        self, key: TaskKey, *, after: int = 0, limit: int = 400
    ) -> Sequence[tuple[int, Observation]]:
        """The newest *limit* observations of all versions, oldest first, each with its number.

        Args:
            key: pipeline and step; the version is not looked at.
            after: only those with a greater number; all, where the history was begun anew since
                (see `BEGUN_ANEW`).
            limit: at most that many.
        """
        ...


class InMemoryHistory:
    """Observations of this process only: for tests, benchmarks and trying things out."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], list[tuple[int, Observation]]] = {}

    def append(self, key: TaskKey, observation: Observation) -> None:
        """Add *observation*."""
        rows = self._rows.setdefault((key.pipeline, key.step), [])
        rows.append((rows[-1][0] + 1 if rows else 1, observation))

    def read(
        self, key: TaskKey, *, after: int = 0, limit: int = 400
    ) -> Sequence[tuple[int, Observation]]:
        """As `Records.read`."""
        rows = self._rows.get((key.pipeline, key.step), [])
        first = bisect.bisect_right(rows, after, key=lambda row: row[0])
        return rows[max(first, len(rows) - limit) :]


def compress_curve(curve: Curve, points: int = CURVE_POINTS) -> tuple[tuple[float, int], ...]:
    """The running maximum of *curve* in at most *points* points.

    Kept are the start and the first sample at or above each of ``points - 1`` equal levels of
    the peak, so that between two points memory grew by no more than a level and a sample.
    """
    running: list[tuple[float, int]] = []
    highest = -1
    for when, size in sorted(curve):
        if size > highest:
            running.append((float(when), int(size)))
            highest = int(size)
    if len(running) <= points:
        return tuple(running)
    kept = [running[0]]
    level = highest / (points - 1)
    for point in running[1:]:
        if point[1] == highest or point[1] // level > kept[-1][1] // level:
            kept.append(point)
    return tuple(kept)
