"""What the history policy keeps in mind of one task: its runs, and how the experts did."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlops_ext.memory.history.allocations import Peaks, Prices, add_tail, best_ladder, cost_of
from mlops_ext.memory.history.observations import Observation
from mlops_ext.memory.history.predictors import DEFAULT, Runs, names, predict
from mlops_ext.memory.history.resize import Choice, best_choice
from mlops_ext.memory.model import Curve, Features
from mlops_ext.memory.policies import MemorySettings

WINDOW = 400
"""Runs looked at. More would win about 1 % where thousands alike have run."""
_MEMORY = 0.99
"""Weight of an expert's past cost, per run since: a task whose need changed is followed."""
_CHANGED = 0.001
"""A task has changed where its last runs all lie above (or below) all the others, and chance
would do that less often than this: two runs after 44, three after 17, four after 10."""
_APART = 1.05
"""They have to lie apart by this factor: a slow drift is no change."""
_LONGEST = 6
"""At most that many runs are taken together for this."""
_MARGIN = 0.9
"""Another expert has to cost less than this much of the default one."""
_PENDING = 8
"""Killed runs without a known peak that are kept in mind."""
_PENDING_RUNS = 50
"""After this many successes a kill without a known peak is history."""
_FEWEST_CURVES = 5
"""Curves needed before growing in place is planned."""
_LONG_S = 300.0
"""Growing in place is for tasks longer than this: resizes take seconds to take effect."""
_RESIZE_PRICE = 0.01
"""Price of a resize, in mean peak times run time: a few API calls, and a chance to be refused."""
_CLEARLY = 0.9
"""Growing in place has to cost less than this much of the static plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The chosen expert's view of the next run.

    Attributes:
        expert: its name.
        peaks: the distribution it predicts, without a tail.
        ladder: the best ladder in bytes, not yet rounded.
    """

    expert: str
    peaks: Peaks
    ladder: Sequence[float]


class Series:
    """The runs of a task in order, at most about `WINDOW` of them. Not thread-safe."""

    def __init__(self, settings: MemorySettings) -> None:
        self._settings = settings
        self._peaks: list[float] = []
        self._inputs: list[float] = []
        self._runtimes: list[float] = []
        self._costs: dict[str, float] = {}
        self._pending: deque[tuple[float, float, int]] = deque(maxlen=_PENDING)
        self._curves: deque[tuple[Curve, float, float, float]] = deque(maxlen=32)
        self._choice: Choice | None = None
        self._is_choice_current = True
        self._added = 0
        self._ratios: list[float] = []

    def __len__(self) -> int:
        """Number of runs whose peak is known, of those in the window."""
        return min(len(self._peaks), WINDOW)

    @property
    def span(self) -> tuple[float, float]:
        """Smallest and largest peak of the window, in bytes."""
        peaks = self._peaks[-WINDOW:]
        return min(peaks), max(peaks)

    @property
    def largest_killed(self) -> float:
        """The largest limit at which a run was killed that never got through; 0 for none."""
        return max((limit for _, limit, _ in self._pending), default=0.0)

    def add(self, run: Observation) -> None:
        """Take *run* in, the next one in order."""
        size = _known(run.input_bytes)
        if run.censored:
            self._pending.append((size, float(run.peak), self._added))
            return
        self._resolve(size, run.peak)
        self._added += 1
        self._peaks.append(float(run.peak))
        self._inputs.append(size)
        self._runtimes.append(run.runtime_s)
        self._count_costs(run.costs, run.runtime_s)
        self._notice_change(run.ratio)
        if run.curve and run.runtime_s > 0 and run.first_limit:
            self._curves.append((run.curve, run.runtime_s, float(run.first_limit), float(run.peak)))
            self._is_choice_current = False
        if len(self._peaks) > 2 * WINDOW:
            for values in (self._peaks, self._inputs, self._runtimes, self._ratios):
                del values[:-WINDOW]

    def _notice_change(self, ratio: float | None) -> None:
        """Forget the runs before a change; *ratio* is the latest peak's to its prediction.

        Of n + r exchangeable runs the last r are the largest with chance 1 / C(n + r, r).
        """
        self._ratios.append(1.0 if ratio is None else ratio)
        ratios = self._ratios[-WINDOW:]
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
        self._costs.clear()
        self._curves.clear()
        self._is_choice_current = False

    def _resolve(self, size: float, peak: int) -> None:
        """Forget the kills that this success explains, and the old ones."""
        still = [
            (killed_size, limit, since)
            for killed_size, limit, since in self._pending
            if self._added - since < _PENDING_RUNS
            and not (limit <= peak and (math.isnan(killed_size) or killed_size == size))
        ]
        self._pending = deque(still, maxlen=_PENDING)

    def _count_costs(self, costs: Mapping[str, float], runtime_s: float) -> None:
        default = costs.get(DEFAULT)
        if default is None:
            return
        for name in names():
            cost = costs.get(name, default) * runtime_s
            self._costs[name] = self._costs.get(name, 0.0) * _MEMORY + cost

    def _window(self) -> Runs:
        """The runs in the window; a kill without a known peak counts as a run above its limit.

        Such a run stands at the mean of the peaks above its limit (Efron's redistribution to the
        right), or at twice its limit where there is none.
        """
        peaks, inputs = self._peaks[-WINDOW:], self._inputs[-WINDOW:]
        for size, limit, _ in self._pending:
            above = [peak for peak in self._peaks[-WINDOW:] if peak > limit]
            peaks.append(sum(above) / len(above) if above else limit * self._settings.growth)
            inputs.append(size)
        return Runs(inputs=inputs, peaks=peaks)

    def prices(self, mean_peak: float) -> Prices:
        """What failures cost for a task of this run time and *mean_peak*."""
        runtimes = self._runtimes[-WINDOW:]
        mean = max(math.fsum(runtimes) / len(runtimes), 1.0) if runtimes else 1.0
        return Prices(
            failed=self._settings.time_to_failure + self._settings.restart_s / mean,
            kill=self._settings.kill_price * mean_peak,
        )

    def _ladder(self, peaks: Peaks) -> list[float]:
        """Leaves one retry for growing beyond the ladder's end."""
        length = max(self._settings.max_oom_retries, 1)
        return best_ladder(add_tail(peaks), self.prices(peaks.mean), max_length=length)

    def forecast(self, size: float | None) -> Forecast:
        """The view of the expert that did best so far; there must be a run, or a kill."""
        runs = self._window()
        default = self._costs.get(DEFAULT, 0.0) * _MARGIN
        ranked = sorted(
            (cost, name) for name, cost in self._costs.items() if name != DEFAULT and cost < default
        )
        for name in [*(name for _, name in ranked), DEFAULT]:
            peaks = predict(name, runs, size)
            if peaks is not None:
                return Forecast(expert=name, peaks=peaks, ladder=self._ladder(peaks))
        raise ValueError("a forecast needs a run")

    def costs_of(self, size: float | None, peak: int) -> dict[str, float]:
        """What each expert's ladder would cost a run with this *peak*, in bytes."""
        if len(self._peaks) < 2:  # noqa: PLR2004 - one run says nothing of the spread
            return {}
        runs = self._window()
        found = {name: predict(name, runs, size) for name in names()}
        prices = self.prices(math.fsum(runs.peaks) / len(runs.peaks))
        return {
            name: cost_of(self._ladder(peaks), peak, prices, self._settings.growth)
            for name, peaks in found.items()
            if peaks is not None
        }

    def choice(self) -> Choice | None:
        """How to grow in place, or None where the static plan is about as good."""
        if not self._is_choice_current:
            self._choice = self._best_choice()
            self._is_choice_current = True
        return self._choice

    def _best_choice(self) -> Choice | None:
        runtimes = self._runtimes[-WINDOW:]
        if len(self._curves) < _FEWEST_CURVES or math.fsum(runtimes) < _LONG_S * len(runtimes):
            return None
        mean_peak = math.fsum(self._peaks[-WINDOW:]) / len(runtimes)
        prices = self.prices(mean_peak)
        best = best_choice(
            [run[:3] for run in self._curves], prices.kill, _RESIZE_PRICE * mean_peak
        )
        if best is None:
            return None
        static = [
            cost_of([first], peak, prices, self._settings.growth) + peak
            for _, _, first, peak in self._curves
        ]
        choice, cost = best
        return choice if cost < _CLEARLY * math.fsum(static) / len(static) else None


def _known(size: float | None) -> float:
    """An input size as the experts take it: NaN where it is not known."""
    known = Features(input_bytes=size).known_input
    return math.nan if known is None else known
