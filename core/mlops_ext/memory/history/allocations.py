"""The cheapest sequence of allocations for a peak that is known only as a distribution."""

from __future__ import annotations

import bisect
import itertools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

# Points kept of a distribution; more change the result by less than 1 %.
_GRID = 48
# Of these, the largest are kept as they are: that is where the first allocations come to lie.
_TOP = 8
# Where the mass above the largest peak lies, in spreads beyond it, and its shares: roughly
# exponential, cut into five.
_TAIL_STEPS = ((0.25, 0.35), (0.7, 0.25), (1.3, 0.2), (2.2, 0.13), (4.0, 0.07))
# The spread of the tail is taken from the peaks above this quantile.
_UPPER = 0.8
# Tail spread per mean excess over that quantile. Values from 0.35 to 0.7 do as well.
_SPREAD = 0.7
# A task that may not grow beyond its ladder is judged as though it grew by this.
LEAST_GROWTH = 1.1
# Enough for any price: 1.5**60 is 4e10 times the first step.
_PRICE_STEPS = 60
# Least spread of the tail after one run, relative to the largest peak; it falls with the square
# of the number of runs, as equal peaks soon speak for a narrow distribution.
_FIRST_SPREAD = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What attempts cost, in memory-time over the task's run time.

    Attributes:
        failed: a failed attempt costs its allocation times this (time to failure, plus the
            start-up time, both as fractions of the run time).
        kill: and this much more, in bytes.
    """

    failed: float
    kill: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """A discrete distribution of a task's peak.

    Attributes:
        values: bytes, not falling.
        weights: their masses, positive, of any sum.
        count: how many runs it stands for (Kish's effective sample size).
    """

    values: Sequence[float]
    weights: Sequence[float]
    count: float

    @property
    def median(self) -> float:
        """The least value with half of the mass at or below it."""
        mass = list(itertools.accumulate(self.weights))
        return self.values[bisect.bisect_left(mass, 0.5 * mass[-1])]


def add_tail(peaks: Peaks) -> Peaks:
    """*peaks* thinned to a grid, with mass ``1/(count + 1)`` above its largest value.

    The chance that the next of n + 1 exchangeable runs is the largest is 1/(n + 1). The tail's
    spread is that of the upper peaks (mean excess), and wider after few runs.
    """
    values = peaks.values
    mass = list(itertools.accumulate(peaks.weights))
    top = values[-1]
    quantile = values[bisect.bisect_left(mass, _UPPER * mass[-1])]
    first = bisect.bisect_left(values, quantile)
    upper: float = sum(map(operator.mul, values[first:], peaks.weights[first:]))
    excess = upper / sum(peaks.weights[first:]) - quantile
    min_spread = top * _FIRST_SPREAD / max(peaks.count, 1.0) ** 2
    spread = _SPREAD * min(max(excess, min_spread), top)
    beyond = mass[-1] / peaks.count
    kept, kept_weights = _thin(values, mass)
    return Peaks(
        values=[*kept, *(top + spread * step for step, _ in _TAIL_STEPS)],
        weights=[*kept_weights, *(beyond * share for _, share in _TAIL_STEPS)],
        count=peaks.count,
    )


def _thin(values: Sequence[float], mass: Sequence[float]) -> tuple[list[float], list[float]]:
    """At most `_GRID` points and their weights; mass moves up to the next point kept.

    Args:
        values: bytes, not falling.
        mass: the weights, summed up to each value.
    """
    count = len(values)
    indexes: Iterable[int] = range(count)
    if count > _GRID:
        step = mass[-1] / (_GRID - _TOP - 1)
        spaced = {bisect.bisect_left(mass, step * k) for k in range(1, _GRID - _TOP - 1)}
        indexes = sorted(spaced.union(range(count - _TOP, count)))
    kept = [values[index] for index in indexes]
    sums = [mass[index] for index in indexes]
    return kept, [sums[0], *map(operator.sub, sums[1:], sums)]


def best_ladder(peaks: Peaks, prices: Prices, *, max_length: int | None = None) -> list[float]:
    """The rising allocations, taken from the values of *peaks*, that cost least on average.

    Cost of a run = sum over failed attempts of (allocation x failed + kill) + last allocation -
    peak. The last allocation is the largest value. Exact, by dynamic programming from the largest
    value down: serving the values in (k, j] with value j, given that value k was too little,
    costs ``g[j] - value[j] * mass[k]``, a line in ``mass[k]``, so that the best j is found on
    the lower envelope of lines in amortised constant time.

    Args:
        peaks: the distribution.
        prices: what failures cost.
        max_length: at most that many allocations: kills are priced up until they fit (a
            Lagrangian, so the result is the best ladder of its length).
    """
    kill = prices.kill
    for _ in range(_PRICE_STEPS):
        ladder = _solve(peaks.values, peaks.weights, prices.failed, kill)
        if max_length is None or len(ladder) <= max(max_length, 1):
            return ladder
        kill = max(kill * 1.5, 0.02 * peaks.values[-1])
    return [peaks.values[-1]]


def _solve(
    values: Sequence[float], weights: Sequence[float], failed: float, kill: float
) -> list[float]:
    count = len(values)
    mass: list[float] = []
    total = 0.0
    for weight in weights:
        total += weight
        mass.append(total)
    following = [-1] * count
    cost = [0.0] * count
    cost[-1] = values[-1] * total
    # The envelope: lines of rising slope -values[j]; queries come with falling mass, so the
    # best line only ever moves towards the newest.
    lines = [count - 1]
    best = 0
    for k in range(count - 2, -1, -1):
        served = mass[k]
        while best + 1 < len(lines):
            this, other = lines[best], lines[best + 1]
            if cost[other] - values[other] * served > cost[this] - values[this] * served:
                break
            best += 1
        j = lines[best]
        following[k] = j
        onward = cost[j] - values[j] * served
        cost[k] = values[k] * served + (failed * values[k] + kill) * (total - served) + onward
        while len(lines) - best > 1:
            last, before = lines[-1], lines[-2]
            if (cost[k] - cost[before]) * (values[before] - values[last]) > (
                cost[last] - cost[before]
            ) * (values[before] - values[k]):
                break
            lines.pop()
        lines.append(k)
    index = min(range(count), key=cost.__getitem__)
    ladder = []
    while index >= 0:
        ladder.append(values[index])
        index = following[index]
    return ladder


def outcome_of(ladder: Sequence[float], peak: float, growth: float) -> Outcome:
    """What a run with this *peak* meets on *ladder*, which grows by *growth* after its end."""
    kills, failed, allocation, growth = 0, 0.0, 0.0, max(growth, LEAST_GROWTH)
    for allocation in ladder:
        if allocation >= peak:
            return Outcome(left=allocation - peak, failed=failed, kills=kills)
        failed += allocation
        kills += 1
    allocation *= growth
    while allocation < peak:
        failed += allocation
        kills += 1
        allocation *= growth
    return Outcome(left=allocation - peak, failed=failed, kills=kills)


class Outcome(NamedTuple):
    """How a run ended on a ladder: facts, which everybody can weigh with prices of their own.

    Attributes:
        left: bytes of the last allocation that were not used.
        failed: bytes allocated to the attempts that were killed, summed up.
        kills: how many were.
    """

    left: float
    failed: float
    kills: float

    def cost(self, prices: Prices) -> float:
        """Bytes, over the task's run time."""
        return self.left + self.failed * prices.failed + self.kills * prices.kill


def mix(views: Sequence[tuple[float, Peaks]]) -> Peaks:
    """One distribution of several, each with its weight."""
    points: list[tuple[float, float]] = []
    for weight, peaks in views:
        share = weight / sum(peaks.weights)
        points += zip(peaks.values, [share * each for each in peaks.weights], strict=True)
    points.sort()
    values, weights = zip(*points, strict=True)
    return Peaks(values=values, weights=weights, count=sum(w * p.count for w, p in views))
