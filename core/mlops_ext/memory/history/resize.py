"""Where to start and when to grow, for tasks that can be resized while they run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mlops_ext.memory.model import Curve

_STARTS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
_THRESHOLDS = (0.7, 0.8, 0.9)
_GROWTHS = (1.1, 1.2, 1.35, 1.6, 2.0)
_MOST_CURVES = 12
"""Curves replayed for a decision: the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to run a task in place.

    Attributes:
        start: limit at the start, as a fraction of the static plan's first rung.
        threshold: grow as soon as usage reaches this fraction of the limit.
        growth: the new limit is the old one times this.
    """

    start: float
    threshold: float
    growth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What a replayed run would have cost.

    Attributes:
        allocated: byte-seconds allocated, those of the killed attempts included.
        kills: how often memory outgrew the limit before it was raised.
        resizes: how often the limit was raised.
    """

    allocated: float
    kills: int
    resizes: int


def replay(curve: Curve, runtime_s: float, start: float, choice: Choice) -> Replay:
    """A run with this running maximum, started with limit *start*.

    Between two points of the curve nothing is known, so nothing can be done: where memory goes
    from below the threshold to beyond the limit in one step, the run is killed, and starts again
    with *growth* times the limit, as often as it takes.
    """
    limit, allocated, resizes, kills = start, 0.0, 0, 0
    while True:
        spent, limit, killed, grown = _attempt(curve, runtime_s, limit, choice)
        allocated += spent
        resizes += grown
        if not killed:
            return Replay(allocated=allocated, kills=kills, resizes=resizes)
        kills += 1
        limit *= max(choice.growth, 2.0)


def _attempt(
    curve: Curve, runtime_s: float, limit: float, choice: Choice
) -> tuple[float, float, bool, int]:
    """Byte-seconds, last limit, whether it was killed, and the number of resizes."""
    spent, before, resizes = 0.0, 0.0, 0
    for when, usage in curve:
        spent += (when - before) * limit
        before = when
        if usage > limit:
            return spent, limit, True, resizes
        if usage >= choice.threshold * limit:
            resizes += 1
            while usage >= choice.threshold * limit:
                limit *= choice.growth
    return spent + max(runtime_s - before, 0.0) * limit, limit, False, resizes


def best_choice(
    runs: Sequence[tuple[Curve, float, float]], kill: float, resize: float
) -> tuple[Choice, float] | None:
    """The cheapest choice over *runs* and its mean cost in bytes, or None without runs.

    Args:
        runs: (running maximum, run time in seconds, first allocation of the static plan that was in
            force) of earlier runs, oldest first.
        kill: price of a kill in bytes, as for the static ladder, so that both can be compared.
        resize: price of a resize in bytes.
    """
    runs = [run for run in runs if run[0] and run[1] > 0 and run[2] > 0][-_MOST_CURVES:]
    best: tuple[Choice, float] | None = None
    for start in _STARTS if runs else ():
        for threshold in _THRESHOLDS:
            for growth in _GROWTHS:
                choice = Choice(start=start, threshold=threshold, growth=growth)
                bound = best[1] if best else math.inf
                cost = _mean_cost(runs, choice, (kill, resize), bound)
                if cost < bound:
                    best = (choice, cost)
    return best


def _mean_cost(
    runs: Sequence[tuple[Curve, float, float]],
    choice: Choice,
    prices: tuple[float, float],
    bound: float,
) -> float:
    """Mean allocation per run time plus kills and resizes; stops where it exceeds *bound*."""
    kill, resize = prices
    cost = 0.0
    for curve, runtime_s, first in runs:
        result = replay(curve, runtime_s, choice.start * first, choice)
        cost += result.allocated / runtime_s + kill * result.kills + resize * result.resizes
        if cost > bound * len(runs):
            break
    return cost / len(runs)
