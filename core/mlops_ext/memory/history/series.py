"""What the history policy keeps in mind of one task: its runs, and how the predictors did."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mlops_ext.memory.history.allocations import (
    LEAST_GROWTH,
    Outcome,
    Peaks,
    Prices,
    best_ladder,
    mix,
    outcome_of,
)
from mlops_ext.memory.history.observations import Observation
from mlops_ext.memory.history.predictors import DEFAULT, WITHOUT_INPUT, Views
from mlops_ext.memory.history.resize import MOST_CURVES, Choice, Terms, best_choice, cost_of
from mlops_ext.memory.policies import KILL_PRICES, MemorySettings

# Runs looked at. More would win about 1 % if thousands alike have run.
WINDOW = 400
# Weight of a predictor's past cost, per run since: a task whose need changed is followed.
_MEMORY = 0.99
# How fast a predictor's weight falls with its cost's excess: see the table of constants.
_ETA = 30.0
# A kill costs as much as one of a task of so many byte-seconds more: somebody looks at it,
# however small the task is.
_LEAST_KILL = 1e9 * 120
# Predictors with a smaller share of the mixture are left out, for speed.
_LEAST_SHARE = 0.01
# A task has changed if its last runs all lie above (or below) all the others, and chance
# would do that less often than this: two runs after 44, three after 17, four after 10.
_CHANGED = 0.001
# They have to lie apart by this factor: a slow drift is no change.
_APART = 1.05
# A peak this many times all others is damaged, if it stands alone when the next run ends.
_IMPLAUSIBLE = 1000.0
# Killed runs that never got through, of other inputs or versions, that are kept in mind.
_KILLS = 8
# Weight of a kill of another version: what leaked may have been repaired.
_FOREIGN = 0.5
# Factor of a kill's weight for each success since that needed less: it was a leak, or chance.
_DOUBT = 0.5
# A kill with less weight than this is forgotten: six successes after it.
_FORGOTTEN = 0.02
# Runs needed before growing in place is planned, or one of them is called damaged.
_ENOUGH = 5
# Growing in place is for tasks longer than this: what it saves of shorter ones is little.
_LONG_S = 300.0
# Price of a resize, in mean peak times run time: a few API calls, and a chance to be refused.
_RESIZE_PRICE = 0.01
# Growing in place has to cost less than this much of the static plan.
_CLEARLY = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Runs that were killed and never got through, as one.

    Attributes:
        bound: the largest limit that was too little.
        size: input size; None if it is not known.
        version: the code that ran.
        weight: how many runs it counts for.
    """

    bound: float
    size: float | None
    version: str
    weight: float

    def weight_at(self, size: float | None) -> float:
        """Its weight for a run with input *size*: less for one smaller than the killed run's."""
        return self.weight * (min(1.0, size / self.size) if size and self.size else 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What the next run is expected to need.

    Attributes:
        median: half of the runs are expected to peak below.
        ladder: the allocations that cost least on average, in bytes, not yet rounded.
        by_input: share of the predictors that look at the input's size.
    """

    median: float
    ladder: Sequence[float]
    by_input: float


class Series:
    """The runs of a task in order, at most `WINDOW` of them. Not thread-safe."""

    def __init__(self) -> None:
        self.kills: dict[tuple[str, float | None], Kill] = {}
        self._peaks: list[float] = []
        self._inputs: list[float] = []
        self._runtimes: list[float] = []
        self._outcomes: dict[str, Outcome] = {}
        self._made: Views | None = None
        self._curves: deque[Observation] = deque(maxlen=MOST_CURVES)
        self._choice: Choice | None = None
        self._chosen_for: float | None = None
        self._ratios: list[float] = []

    def __len__(self) -> int:
        """Number of runs whose peak is known, of those in the window."""
        return len(self._peaks)

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest peak of the window, in bytes."""
        return min(self._peaks), max(self._peaks)

    @property
    def mean_peak(self) -> float:
        """Mean peak of the window, in bytes."""
        return sum(self._peaks) / len(self._peaks)

    def add(self, run: Observation, *, version: str) -> None:
        """Take *run* in, the next one in order; *version* is the task's own."""
        if run.censored:
            self._add_kill(run, is_own=run.version == version)
            return
        self._resolve(run)
        self._made = None
        size = math.nan if run.input_bytes is None else run.input_bytes
        for values, value in zip(
            self._columns,
            (float(run.peak), size, run.runtime_s or self._mean_runtime(), run.ratio or 1.0),
            strict=True,
        ):
            values.append(value)
            del values[:-WINDOW]
        self._leave_out_damage()
        self._count(run.outcomes)
        self._notice_change()
        if run.curve and run.runtime_s and run.first_limit:
            self._curves.append(run)
            self._chosen_for = None

    @property
    def _columns(self) -> tuple[list[float], ...]:
        """What is kept of each run in the window."""
        return self._peaks, self._inputs, self._runtimes, self._ratios

    def _leave_out_damage(self) -> None:
        """Forget a peak far above all others if the run after it did not need as much."""
        top = max(self._peaks[:-1], default=0.0)
        at = self._peaks.index(top) if len(self) > _ENOUGH else -1
        if at >= 0 and top > _IMPLAUSIBLE * max(self._peaks[:at] + self._peaks[at + 1 :]):
            for values in self._columns:
                del values[at]

    def _add_kill(self, run: Observation, *, is_own: bool) -> None:
        """Count a kill. Attempts of one run are one kill, with the largest limit of theirs."""
        before = self.kills.pop((run.version, run.input_bytes), None)
        self.kills[run.version, run.input_bytes] = Kill(
            bound=max(float(run.peak), before.bound if before else 0.0),
            size=run.input_bytes,
            version=run.version,
            weight=1.0 if is_own else _FOREIGN,
        )
        if len(self.kills) > _KILLS:
            del self.kills[next(iter(self.kills))]

    def _resolve(self, run: Observation) -> None:
        """Forget the kills that this success explains; doubt those that it contradicts."""
        for key, kill in list(self.kills.items()):
            if kill.size and run.input_bytes and run.input_bytes < kill.size:
                continue
            weight = kill.weight * _DOUBT if kill.bound > run.peak else 0.0
            self.kills[key] = replace(kill, weight=weight)
            if weight <= _FORGOTTEN:
                del self.kills[key]

    def _mean_runtime(self) -> float:
        """Mean run time of the window in seconds; runs without one count as the mean."""
        return sum(self._runtimes) / len(self._runtimes) if self._runtimes else 1.0

    def _notice_change(self) -> None:
        """Forget the runs before a change of the peaks, relative to what was predicted.

        Of n + r exchangeable runs the last r are the largest with chance 1 / C(n + r, r).
        """
        ratios, count = self._ratios, len(self._ratios)
        enough = (r for r in range(2, count // 2) if math.comb(count, r) * _CHANGED > 1)
        latest = next(enough, 0)
        if not latest:
            return
        before, since = ratios[:-latest], ratios[-latest:]
        if min(since) > _APART * max(before) or max(since) * _APART < min(before):
            self._forget_before(latest)

    def _forget_before(self, latest: int) -> None:
        """Keep the *latest* runs only."""
        for values in self._columns:
            del values[:-latest]
        self._ratios = [1.0] * latest  # they were taken against predictions that are gone
        self._outcomes.clear()
        self._curves.clear()
        self._chosen_for = None

    def _count(self, outcomes: Mapping[str, Outcome]) -> None:
        """Add what each predictor's ladder met, weighted by run time, and let the past fade.

        A predictor without a view is charged what the default one met.
        """
        default = outcomes.get(DEFAULT)
        if default is None:
            return
        runtime = self._runtimes[-1]
        before = self._outcomes.get(DEFAULT, Outcome(0.0, 0.0, 0.0))
        for name in {*outcomes, *self._outcomes}:
            past, new = self._outcomes.get(name, before), outcomes.get(name, default)
            faded = (_MEMORY * old + runtime * now for old, now in zip(past, new, strict=True))
            self._outcomes[name] = Outcome(*faded)

    def prices(self, settings: MemorySettings, kill_price: float) -> Prices:
        """What failures cost, at this price of a kill."""
        mean = max(self._mean_runtime(), 1.0)
        return Prices(
            failed=settings.time_to_failure + settings.restart_s / mean,
            kill=kill_price * (self.mean_peak + _LEAST_KILL / mean),
        )

    def _shares(self, size: float | None, prices: Prices) -> dict[str, float]:
        """How much each predictor counts: ``exp(-_ETA * its cost's relative excess)``."""
        if not self._outcomes:
            return {DEFAULT: 1.0}
        costs = {name: outcome.cost(prices) for name, outcome in self._outcomes.items()}
        costs = {name: costs.get(name, costs[DEFAULT]) for name in self._views.names(size)}
        lowest = max(min(costs.values()), 1.0)
        shares = {name: math.exp(-_ETA * (cost / lowest - 1.0)) for name, cost in costs.items()}
        least = _LEAST_SHARE * sum(shares.values())
        kept = {name: share for name, share in shares.items() if share > least}
        total = sum(kept.values())
        return {name: share / total for name, share in kept.items()}

    @property
    def _views(self) -> Views:
        """What the predictors expect, made anew after each run."""
        if self._made is None:
            self._made = Views(inputs=[*self._inputs], peaks=[*self._peaks])
        return self._made

    def forecast(self, size: float | None, settings: MemorySettings) -> Forecast:
        """What a run with input *size* needs; there must be a run whose peak is known."""
        prices = self.prices(settings, settings.price_of_kill)
        shares = self._shares(size, prices)
        mixed = mix([(share, self._views.view(name, size)) for name, share in shares.items()])
        expected = self._with_kills(mixed, size, settings.growth)
        length = settings.max_oom_retries  # one is left for growing beyond the ladder's end
        return Forecast(
            median=mixed.median,
            ladder=best_ladder(expected, prices, max_length=length),
            by_input=sum(s for name, s in shares.items() if name not in WITHOUT_INPUT),
        )

    def _with_kills(self, peaks: Peaks, size: float | None, growth: float) -> Peaks:
        """*peaks* and the runs that were killed and never got through.

        Such a run stands at the mean of the peaks above its limit (Efron's redistribution to the
        right), or at its limit times *growth* if there is none.
        """
        if not self.kills:
            return peaks
        share = sum(peaks.weights) / len(self)
        points = list(zip(peaks.values, peaks.weights, strict=True))
        for kill in self.kills.values():
            above = [peak for peak in self._peaks if peak > kill.bound]
            value = math.fsum(above) / len(above) if above else kill.bound * growth
            points.append((value, share * kill.weight_at(size)))
        values, weights = zip(*sorted(points), strict=True)
        return Peaks(values=values, weights=weights, count=peaks.count)

    def assess(
        self, size: float | None, peak: int, settings: MemorySettings
    ) -> tuple[float, Mapping[str, Outcome], float]:
        """A run with this *peak*, held against what would have been predicted for it.

        Predictors are judged by the ladders for a balanced price of kills, whatever is preferred
        here: who reads the outcomes weighs them at a price of their own.

        Returns:
            Its peak as a multiple of the predicted median; what it would have met on the ladder
            of each predictor; the first allocation it would have got, in bytes.
        """
        forecast = self.forecast(size, settings)
        outcomes: dict[str, Outcome] = {}
        if len(self._peaks) > 1:  # one run says nothing of the spread
            prices, length = (
                self.prices(settings, KILL_PRICES["balanced"]),
                settings.max_oom_retries,
            )
            for name in self._views.names(size):
                ladder = best_ladder(self._views.view(name, size), prices, max_length=length)
                outcomes[name] = outcome_of(ladder, peak, settings.growth)
        return peak / forecast.median, outcomes, forecast.ladder[0]

    def choice(self, settings: MemorySettings, latency_s: float) -> Choice | None:
        """How to grow in place, or None if the static plan is about as good.

        Args:
            settings: what failures cost.
            latency_s: seconds until a resize takes effect.
        """
        if self._chosen_for != latency_s:
            self._choice = self._best_choice(settings, latency_s)
            self._chosen_for = latency_s
        return self._choice

    def _best_choice(self, settings: MemorySettings, latency_s: float) -> Choice | None:
        """The cheapest choice, if what half of the runs suggest pays for the other half, too."""
        curves = list(self._curves)
        if len(curves) < _ENOUGH or self._mean_runtime() < _LONG_S:
            return None
        prices = self.prices(settings, settings.price_of_kill)
        # A kill costs the memory, too, that is held while the next attempt starts.
        held = max(prices.failed - 1.0, 0.0) * self.mean_peak
        terms = Terms(
            kill=prices.kill + held,
            resize=_RESIZE_PRICE * self.mean_peak,
            latency_s=latency_s,
            growth=max(settings.growth, LEAST_GROWTH),
        )
        static = [_static(run, settings.growth).cost(prices) + run.peak for run in curves]
        best, of_half = best_choice(curves, terms), best_choice(curves[::2], terms)
        pays = sum(cost_of(run, best, terms) for run in curves) < _CLEARLY * sum(static)
        others = sum(cost_of(run, of_half, terms) for run in curves[1::2])
        return best if pays and others < sum(static[1::2]) else None


def _static(run: Observation, growth: float) -> Outcome:
    return outcome_of([float(run.first_limit or 0)], run.peak, growth)
