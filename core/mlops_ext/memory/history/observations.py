"""What the history keeps of a task's earlier runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlops_ext.memory.history.allocations import Outcome
from mlops_ext.memory.model import Curve, Features, TaskKey
from mlops_ext.memory.quantity import as_number

# Numbers of two histories differ in what is left after division by this, those of one do not.
BEGUN_ANEW = 2**40
# Points kept of a curve: one for each 3 % of the peak.
CURVE_POINTS = 32
# No machine has more memory, no task runs for longer: what says so is damaged.
_MOST_BYTES = 2.0**46
_MOST_SECONDS = 1e9
# No run peaks this many times below or above what was predicted for it, in the same way.
_MOST_TIMES = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One run of a task. What makes no sense of a run counts as not known.

    Attributes:
        peak: bytes; for a censored observation the limit at which it was killed.
        runtime_s: how long it ran; 0: not known.
        version: code or image version of the task.
        input_bytes: input size known before the start, or None.
        censored: it was killed: the peak is *at least* `peak`.
        curve: running maximum of its memory, at most `CURVE_POINTS` points.
        outcomes: what this run would have met on the ladder of each predictor, by its name.
        first_limit: first allocation of the plan that was in force, or None.
        resizes_s: seconds until each resize took effect; infinite for one that never did.
        ratio: the peak as a multiple of the median that was predicted for it, or None.

    Raises:
        ValueError: the peak is no number of bytes, from one to what a machine may have.
    """

    peak: int
    runtime_s: float
    version: str = ""
    input_bytes: float | None = None
    censored: bool = False
    curve: Curve = ()
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    first_limit: int | None = None
    ratio: float | None = None
    resizes_s: Sequence[float] = ()

    def __post_init__(self) -> None:
        """Keep what can be used: it comes from other processes, and from files."""
        peak = as_number(self.peak, 1.0, _MOST_BYTES)
        if peak is None:
            raise ValueError(f"Observation.peak = {self.peak!r}: expected 1 to 2**46 bytes")
        clean = {
            "peak": int(peak),
            "runtime_s": as_number(self.runtime_s, 0.0, _MOST_SECONDS) or 0.0,
            "version": str(self.version),
            "input_bytes": Features(input_bytes=self.input_bytes).known_input,
            "censored": bool(self.censored),
            "curve": compress_curve(self.curve),
            "outcomes": _outcomes(self.outcomes, _MOST_TIMES * peak),
            "first_limit": int(as_number(self.first_limit, 1.0, _MOST_BYTES) or 0) or None,
            "ratio": as_number(self.ratio, 1 / _MOST_TIMES, _MOST_TIMES),
            "resizes_s": tuple(_numbers(self.resizes_s, math.inf) or ()),
        }
        for name, value in clean.items():
            object.__setattr__(self, name, value)


class Records(Protocol):
    """A store of observations, kept per pipeline and step in the order of arrival."""

    def append(self, key: TaskKey, observation: Observation) -> None:
        """Add *observation*; raise HistoryError if it could not be kept."""
        ...

    def read(
        self, key: TaskKey, *, after: int = 0, limit: int = 400
    ) -> Sequence[tuple[int, Observation]]:
        """The newest *limit* observations of all versions, oldest first, each with its number.

        Args:
            key: pipeline and step; the version is not looked at.
            after: only those with a greater number; all, if the history was begun anew since
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
        rows.append((len(rows) + 1, observation))

    def read(
        self, key: TaskKey, *, after: int = 0, limit: int = 400
    ) -> Sequence[tuple[int, Observation]]:
        """See `Records.read`."""
        rows = self._rows.get((key.pipeline, key.step), [])
        return rows[max(after, len(rows) - limit) :]


def compress_curve(curve: Curve, points: int = CURVE_POINTS) -> tuple[tuple[float, int], ...]:
    """The running maximum of *curve* in at most *points* points; () for what is no curve.

    Kept are the start and the first sample at or above each of ``points - 1`` equal levels of
    the peak, so that between two points memory grew by no more than a level and a sample.
    """
    try:
        whens = _numbers([when for when, _ in curve], _MOST_SECONDS)
        sizes = _numbers([size for _, size in curve], _MOST_BYTES)
    except (TypeError, ValueError):
        return ()
    running: list[tuple[float, int]] = []
    highest = -1
    for when, size in sorted(zip(whens or (), sizes or (), strict=False)):
        if size > highest:
            highest = int(size)
            running.append((when, highest))
    if len(running) <= points:
        return tuple(running)
    kept = [running[0]]
    level = highest / (points - 1)
    for point in running[1:]:
        if point[1] == highest or point[1] // level > kept[-1][1] // level:
            kept.append(point)
    return tuple(kept)


def _numbers(values: Iterable[Any], most: float) -> list[float] | None:
    """*values* as floats, or None if one of them is no number from 0 to *most*."""
    try:
        numbers = [as_number(value, 0.0, most) for value in values]
    except TypeError:
        return None
    known = [number for number in numbers if number is not None]
    return known if len(known) == len(numbers) else None


def _outcomes(found: Any, most: float) -> dict[str, Outcome]:
    """The outcomes in *found* whose parts are numbers from 0 to *most*."""
    if not isinstance(found, Mapping):
        return {}
    parts = {str(name): _numbers(outcome, most) for name, outcome in found.items()}
    return {n: Outcome(*p) for n, p in parts.items() if p and len(p) == len(Outcome._fields)}
