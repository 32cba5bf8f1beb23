"""Where to start and when to grow, for tasks that can be resized while they run."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mlops_ext.memory.history.observations import Observation

_STARTS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
_THRESHOLDS = (0.7, 0.8, 0.9)
_GROWTHS = (1.1, 1.2, 1.35, 1.6, 2.0)
# Curves replayed for a decision: the newest.
MOST_CURVES = 12


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
class Terms:
    """What growing in place costs.

    Attributes:
        kill: price of a kill in bytes, as for the static ladder, so that both can be compared.
        resize: price of a resize in bytes.
        latency_s: seconds until a resize takes effect.
        growth: beyond the ladder the next limit is the last one times this.
    """

    kill: float = 0.0
    resize: float = 0.0
    latency_s: float = 0.0
    growth: float = 2.0


def cost_of(run: Observation, choice: Choice, terms: Terms) -> float:
    """What *run* would have cost with *choice*, in bytes over its run time.

    Between two points of the curve nothing is known, so nothing can be done: if memory goes
    from below the threshold to beyond the limit in one step, the run is killed. It starts again
    with the static plan's first allocation, and after that with *growth* times as much each time.
    """
    first = float(run.first_limit or 0)
    limit, cost = choice.start * first, 0.0
    while True:
        spent, limit, killed, resizes = _attempt(run, limit, choice, terms.latency_s)
        cost += spent / run.runtime_s + terms.resize * resizes
        if not killed:
            return cost
        cost += terms.kill
        limit = first if limit < first else terms.growth * limit


def _attempt(
    run: Observation, limit: float, choice: Choice, latency_s: float
) -> tuple[float, float, bool, int]:
    """Byte-seconds, last limit, whether it was killed, and the number of resizes."""
    spent, before, resizes = 0.0, 0.0, 0
    wanted = limit
    under_way: deque[tuple[float, float]] = deque()
    for when, usage in run.curve:
        while under_way and under_way[0][0] <= when:
            effective, grown = under_way.popleft()
            spent += (effective - before) * limit
            before, limit = effective, grown
        spent += (when - before) * limit
        before = when
        if usage > limit:
            return spent, limit, True, resizes
        if usage >= choice.threshold * wanted:
            resizes += 1
            while usage >= choice.threshold * wanted:
                wanted *= choice.growth
            under_way.append((when + latency_s, wanted))
    for effective, grown in under_way:
        if effective < run.runtime_s:
            spent += (effective - before) * limit
            before, limit = effective, grown
    return spent + max(run.runtime_s - before, 0.0) * limit, limit, False, resizes


def best_choice(runs: Sequence[Observation], terms: Terms) -> Choice:
    """The cheapest choice over *runs*, oldest first."""
    best, least = Choice(start=1.0, threshold=1.0, growth=2.0), math.inf
    for start, threshold, growth in itertools.product(_STARTS, _THRESHOLDS, _GROWTHS):
        choice, cost = Choice(start=start, threshold=threshold, growth=growth), 0.0
        for run in runs:
            cost += cost_of(run, choice, terms)
            if cost >= least:
                break
        else:
            best, least = choice, cost
    return best
