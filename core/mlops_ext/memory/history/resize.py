"""Where to start and when to grow, for tasks that can be resized while they run."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from mlops_ext.memory.model import Curve

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
class Curved:
    """An earlier run whose memory over time is known.

    Attributes:
        curve: the running maximum of its memory.
        runtime_s: how long it ran, in seconds.
        first: what its static plan gave it at first, in bytes.
        peak: its peak in bytes.
    """

    curve: Curve
    runtime_s: float
    first: float
    peak: float


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

    def cost(self, runtime_s: float, kill: float, resize: float) -> float:
        """Bytes, over the run time, with these prices of a kill and of a resize in bytes."""
        return self.allocated / runtime_s + kill * self.kills + resize * self.resizes


def replay(run: Curved, choice: Choice, latency_s: float) -> Replay:
    """*run* as it would have gone with *choice*, where a resize takes *latency_s* to take effect.

    Between two points of the curve nothing is known, so nothing can be done: where memory goes
    from below the threshold to beyond the limit in one step, the run is killed. It starts again
    with the static plan's first allocation, and after that with twice as much each time.
    """
    limit, allocated, resizes, kills = choice.start * run.first, 0.0, 0, 0
    while True:
        spent, limit, killed, grown = _attempt(run, limit, choice, latency_s)
        allocated += spent
        resizes += grown
        if not killed:
            return Replay(allocated=allocated, kills=kills, resizes=resizes)
        kills += 1
        limit = run.first if limit < run.first else 2.0 * limit


def _attempt(
    run: Curved, limit: float, choice: Choice, latency_s: float
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


def best_choice(
    runs: Sequence[Curved], kill: float, resize: float, latency_s: float
) -> tuple[Choice, float] | None:
    """The cheapest choice over *runs* and its mean cost in bytes, or None.

    Args:
        runs: earlier runs, oldest first.
        kill: price of a kill in bytes, as for the static ladder, so that both can be compared.
        resize: price of a resize in bytes.
        latency_s: seconds until a resize takes effect.
    """
    best: tuple[Choice, float] | None = None
    for start, threshold, growth in itertools.product(_STARTS, _THRESHOLDS, _GROWTHS):
        choice = Choice(start=start, threshold=threshold, growth=growth)
        bound = best[1] * len(runs) if best else math.inf
        cost = 0.0
        for run in runs:
            cost += replay(run, choice, latency_s).cost(run.runtime_s, kill, resize)
            if cost >= bound:
                break
        else:
            best = (choice, cost / len(runs))
    return best
