"""What the history policy keeps in mind of one task: its runs, and how the predictors did."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mlops_ext.memory.history.allocations import (
    Outcome,
    Peaks,
    Prices,
    best_ladder,
    mix,
    outcome_of,
)
from mlops_ext.memory.history.observations import Observation
from mlops_ext.memory.history.predictors import DEFAULT, WITHOUT_INPUT, Views
from mlops_ext.memory.history.resize import MOST_CURVES, Choice, Curved, best_choice, replay
from mlops_ext.memory.model import Features
from mlops_ext.memory.policies import KILL_PRICES, MemorySettings

# Runs looked at. More would win about 1 % where thousands alike have run.
WINDOW = 400
# Weight of a predictor's past cost, per run since: a task whose need changed is followed.
_MEMORY = 0.99
# How fast a predictor's weight falls with its cost's excess: see the table of constants.
_ETA = 30.0
# A kill costs as much as one of a task of so many byte-seconds more: somebody looks at it,
# however small the task is.
_LEAST_KILL = 1e9 * 120
_NOTHING = Outcome(0.0, 0.0, 0.0)
# Predictors with a smaller share of the mixture are left out, for speed.
_LEAST_SHARE = 0.01
# A task has changed where its last runs all lie above (or below) all the others, and chance
# would do that less often than this: two runs after 44, three after 17, four after 10.
_CHANGED = 0.001
# They have to lie apart by this factor: a slow drift is no change.
_APART = 1.05
# At most that many runs are taken together for this.
_LONGEST = 6
# Killed runs that never got through, of other inputs or versions, that are kept in mind.
_KILLS = 8
# Weight of a kill of another version: what leaked may have been repaired.
_FOREIGN = 0.5
# Factor of a kill's weight for each success since that needed less: it was a leak, or chance.
_DOUBT = 0.5
# A kill with less weight than this is forgotten: six successes after it.
_FORGOTTEN = 0.02
# Curves needed before growing in place is planned.
_FEWEST_CURVES = 5
# Growing in place is for tasks longer than this: what it saves of shorter ones is little.
_LONG_S = 300.0
# Price of a resize, in mean peak times run time: a few API calls, and a chance to be refused.
_RESIZE_PRICE = 0.01
# Growing in place has to cost less than this much of the static plan.
_CLEARLY = 0.9
# Weight of how growing in place did against the static plan, per run since.
_RECORD_MEMORY = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """Runs that were killed and never got through, as one.

    Attributes:
        bound: the largest limit that was too little.
        size: input size; NaN where not known.
        version: the code that ran.
        weight: how many runs it counts for.
    """

    bound: float
    size: float
    version: str
    weight: float

    def weight_at(self, size: float) -> float:
        """Its weight for a run with input *size*: less for one smaller than the killed run's."""
        return self.weight * (min(1.0, size / self.size) if size < self.size else 1.0)


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
        self.kills: list[Kill] = []
        self._peaks: list[float] = []
        self._inputs: list[float] = []
        self._runtimes: list[float] = []
        self._outcomes: dict[str, Sequence[Outcome]] = {}
        self._made: Views | None = None
        self._curves: deque[Curved] = deque(maxlen=MOST_CURVES)
        self._choice: Choice | None = None
        self._chosen_for: float | None = None
        self._record = 0.0
        self._prices = Prices(failed=1.0, kill=0.0)
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
        size = _known(run.input_bytes)
        if run.censored:
            self._add_kill(float(run.peak), size, run.version, is_own=run.version == version)
            return
        self._resolve(size, run.peak)
        self._made = None
        runtime = run.runtime_s if run.runtime_s > 0 else self._mean_runtime()
        for values, value in (
            (self._peaks, float(run.peak)),
            (self._inputs, size),
            (self._runtimes, runtime),
            (self._ratios, run.ratio or 1.0),
        ):
            values.append(value)
            del values[:-WINDOW]
        self._count(run.outcomes)
        self._notice_change()
        if run.curve and run.runtime_s > 0 and run.first_limit:
            self._add_curve(
                Curved(
                    curve=run.curve,
                    runtime_s=run.runtime_s,
                    first=float(run.first_limit),
                    peak=float(run.peak),
                )
            )

    def _add_kill(self, bound: float, size: float, version: str, *, is_own: bool) -> None:
        """Count a kill. Attempts of one run are one kill, with the largest limit of theirs."""
        same = [k for k in self.kills if k.version == version and _are_same(k.size, size)]
        kill = Kill(
            bound=max([bound, *(k.bound for k in same)]),
            size=size,
            version=version,
            weight=1.0 if is_own else _FOREIGN,
        )
        self.kills = [*(k for k in self.kills if k not in same), kill][-_KILLS:]

    def _resolve(self, size: float, peak: int) -> None:
        """Forget the kills that this success explains; doubt those that it contradicts."""
        left = []
        for kill in self.kills:
            comparable = math.isnan(kill.size) or math.isnan(size) or size >= kill.size
            if not comparable:
                left.append(kill)
            elif kill.bound > peak:
                left.append(replace(kill, weight=kill.weight * _DOUBT))
        self.kills = [kill for kill in left if kill.weight > _FORGOTTEN]

    def _mean_runtime(self) -> float:
        """Mean run time of the window in seconds; runs without one count as the mean."""
        return sum(self._runtimes) / len(self._runtimes) if self._runtimes else 1.0

    def _notice_change(self) -> None:
        """Forget the runs before a change of the peaks, relative to what was predicted.

        Of n + r exchangeable runs the last r are the largest with chance 1 / C(n + r, r).
        """
        ratios = self._ratios
        certainly_earlier = ratios[:-_LONGEST]
        if not certainly_earlier:
            return
        if ratios[-1] * _APART < min(certainly_earlier):
            ratios = [1.0 / value for value in ratios]
        elif ratios[-1] <= _APART * max(certainly_earlier):
            return
        for latest in range(2, _LONGEST + 1):
            is_apart = min(ratios[-latest:]) > _APART * max(ratios[:-latest])
            if is_apart and math.comb(len(ratios), latest) * _CHANGED > 1:
                self._forget_before(latest)
                return

    def _forget_before(self, latest: int) -> None:
        """Keep the *latest* runs only."""
        for values in (self._peaks, self._inputs, self._runtimes):
            del values[:-latest]
        self._ratios = [1.0] * latest  # they were taken against predictions that are gone
        self._outcomes.clear()
        self._curves.clear()
        self._chosen_for, self._record = None, 0.0

    def _count(self, outcomes: Mapping[str, Sequence[Outcome]]) -> None:
        """Add what each predictor's ladders met, weighted by run time, and let the past fade.

        A predictor without a view is charged what the default one met.
        """
        default = outcomes.get(DEFAULT)
        if default is None:
            return
        runtime = self._runtimes[-1]
        before = self._outcomes.get(DEFAULT, [_NOTHING] * len(KILL_PRICES))
        for name in {*outcomes, *self._outcomes}:
            past, new = self._outcomes.get(name, before), outcomes.get(name, default)
            self._outcomes[name] = [
                Outcome(*(_MEMORY * old + runtime * now for old, now in zip(*pair, strict=True)))
                for pair in zip(past, new, strict=True)
            ]

    def prices(self, settings: MemorySettings, kill_price: float | None = None) -> Prices:
        """What failures cost; *kill_price* in place of that in *settings*."""
        price = settings.price_of_kill if kill_price is None else kill_price
        mean = max(self._mean_runtime(), 1.0)
        return Prices(
            failed=settings.time_to_failure + settings.restart_s / mean,
            kill=price * (self.mean_peak + _LEAST_KILL / mean),
        )

    def _shares(self, size: float | None, settings: MemorySettings) -> dict[str, float]:
        """How much each predictor counts: ``exp(-_ETA * its cost's relative excess)``."""
        if not self._outcomes:
            return {DEFAULT: 1.0}
        prices, nearest = self.prices(settings), _nearest(settings.price_of_kill)
        costs = {name: of[nearest].cost(prices) for name, of in self._outcomes.items()}
        costs = {name: costs.get(name, costs[DEFAULT]) for name in self._views.names(size)}
        lowest = min(costs.values())
        if lowest <= 0:
            return {DEFAULT: 1.0}
        shares = {name: math.exp(-_ETA * (cost / lowest - 1.0)) for name, cost in costs.items()}
        total = sum(shares.values())
        kept = {n: s for n, s in shares.items() if s > _LEAST_SHARE * total}
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
        shares = self._shares(size, settings)
        mixed = mix([(share, self._views.view(name, size)) for name, share in shares.items()])
        expected = self._with_kills(mixed, _known(size), settings.growth)
        length = settings.max_oom_retries  # one is left for growing beyond the ladder's end
        return Forecast(
            median=mixed.median,
            ladder=best_ladder(expected, self.prices(settings), max_length=length),
            by_input=sum(s for name, s in shares.items() if name not in WITHOUT_INPUT),
        )

    def _with_kills(self, peaks: Peaks, size: float, growth: float) -> Peaks:
        """*peaks* and the runs that were killed and never got through.

        Such a run stands at the mean of the peaks above its limit (Efron's redistribution to the
        right), or at its limit times *growth* where there is none.
        """
        if not self.kills:
            return peaks
        share = sum(peaks.weights) / len(self)
        points = list(zip(peaks.values, peaks.weights, strict=True))
        for kill in self.kills:
            above = [peak for peak in self._peaks if peak > kill.bound]
            value = math.fsum(above) / len(above) if above else kill.bound * growth
            points.append((value, share * kill.weight_at(size)))
        values, weights = zip(*sorted(points), strict=True)
        return Peaks(values=values, weights=weights, count=peaks.count)

    def assess(
        self, size: float | None, peak: int, settings: MemorySettings
    ) -> tuple[float, Mapping[str, Sequence[Outcome]], float]:
        """A run with this *peak*, held against what would have been predicted for it.

        Returns:
            Its peak as a multiple of the predicted median; what it would have met on the ladders
            of each predictor, one for each of `KILL_PRICES`; the first allocation it would have
            got, in bytes.
        """
        forecast = self.forecast(size, settings)
        outcomes: dict[str, Sequence[Outcome]] = {}
        if len(self._peaks) > 1:  # one run says nothing of the spread
            every = [self.prices(settings, price) for price in KILL_PRICES.values()]
            length = settings.max_oom_retries
            for name in self._views.names(size):
                view = self._views.view(name, size)
                ladders = [best_ladder(view, prices, max_length=length) for prices in every]
                outcomes[name] = [outcome_of(each, peak, settings.growth) for each in ladders]
        return peak / forecast.median, outcomes, forecast.ladder[0]

    def _add_curve(self, run: Curved) -> None:
        """Take a curve in; the choice in force is judged by a run that it was not made from."""
        if self._choice is not None and self._chosen_for is not None:
            in_place = self._cost_in_place(run, self._choice, self._chosen_for)
            self._record = _RECORD_MEMORY * self._record + in_place - self._cost_static(run)
        self._curves.append(run)
        self._chosen_for = None

    def choice(self, settings: MemorySettings, latency_s: float) -> Choice | None:
        """How to grow in place, or None where the static plan is about as good.

        Args:
            settings: what failures cost.
            latency_s: seconds until a resize takes effect.
        """
        if self._chosen_for != latency_s:
            self._prices = self.prices(settings)
            self._choice = self._best_choice(latency_s)
            self._chosen_for = latency_s
        return self._choice if self._record <= 0 else None

    def _cost_in_place(self, run: Curved, choice: Choice, latency_s: float) -> float:
        resize = _RESIZE_PRICE * self.mean_peak
        return replay(run, choice, latency_s).cost(run.runtime_s, self._kill_price, resize)

    def _cost_static(self, run: Curved) -> float:
        return outcome_of([run.first], run.peak, 2.0).cost(self._prices) + run.peak

    @property
    def _kill_price(self) -> float:
        """A kill's price, with the memory that is held while the next attempt starts."""
        return self._prices.kill + max(self._prices.failed - 1.0, 0.0) * self.mean_peak

    def _best_choice(self, latency_s: float) -> Choice | None:
        if len(self._curves) < _FEWEST_CURVES or self._mean_runtime() < _LONG_S:
            return None
        curves = list(self._curves)
        best = best_choice(curves, self._kill_price, _RESIZE_PRICE * self.mean_peak, latency_s)
        static = sum(map(self._cost_static, curves)) / len(curves)
        return best[0] if best and best[1] < _CLEARLY * static else None


def _known(size: float | None) -> float:
    """An input size as the predictors take it: NaN where it is not known."""
    known = Features(input_bytes=size).known_input
    return math.nan if known is None else known


def _nearest(price: float) -> int:
    """The place in `KILL_PRICES` of what is nearest to *price*, as a factor."""
    known = list(KILL_PRICES.values())
    return min(range(len(known)), key=lambda at: abs(math.log(known[at] / max(price, 1e-9))))


def _are_same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))
