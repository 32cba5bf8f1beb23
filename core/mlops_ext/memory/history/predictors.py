"""Predictive distributions of a task's peak: several views of the same history.

Each predictor turns earlier runs and the input size of the next one into a distribution of its
peak. Those that look at the input size need NumPy; without it the others stand alone.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlops_ext.memory.history.allocations import Peaks, add_tail

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

# The predictor that needs nothing: all earlier peaks, whatever the input.
DEFAULT = "all"
# The predictor for changed tasks: the last few peaks.
_RECENT = "recent"
# The predictors that do not look at the input.
WITHOUT_INPUT = (DEFAULT, _RECENT)
# Runs that count as recent.
_LAST = 4
# With fewer runs the input size is not looked at: a line through them proves nothing.
_FEWEST = 5
# No prediction below or above these multiples of the smallest and largest peak seen.
_CLAMP = (0.5, 1.3)
# Least number of runs within one bandwidth of a kernel.
_NEIGHBOURS = 8
# The predictors that look at the input. A bandwidth of their kernels reaches this many times
# the root of the number of runs.
_REACH = {"power law": 3.0, "neighbours": 1.0, "local line": 2.0}
# A run has no more leverage: a single far one would otherwise set the tail.
_LEVERAGE = 0.7
# Weights below this fraction of the largest are dropped.
_LEAST_WEIGHT = 1e-6
# Inputs that differ by less than this, relatively, are the same.
_SAME = 1e-9
# A variance of log input below this has no line through it.
_NO_SPREAD = 1e-12


class Views:
    """What each predictor expects; what needs no input size is worked out once."""

    def __init__(self, *, inputs: Sequence[float], peaks: Sequence[float]) -> None:
        """Of runs with these input sizes (bytes, NaN if not known) and peaks, oldest first."""
        self._by_input = _ByInput.of(inputs, peaks)
        self._fixed = {DEFAULT: add_tail(equal(peaks))}
        if len(peaks) > _LAST:
            self._fixed[_RECENT] = add_tail(equal(peaks[-_LAST:]))

    def names(self, size: float | None) -> Sequence[str]:
        """The predictors that have a view for input *size*, the default first."""
        return (*self._fixed, *(_REACH if size is not None and self._by_input else ()))

    def view(self, name: str, size: float | None) -> Peaks:
        """The peak that predictor *name* expects for input *size*, tail included."""
        if name in self._fixed or size is None or self._by_input is None:
            return self._fixed[name]
        return add_tail(self._by_input.view(name, size))


def equal(peaks: Sequence[float]) -> Peaks:
    """*peaks*, each as likely as the others."""
    return Peaks(values=sorted(peaks), weights=[1.0] * len(peaks), count=float(len(peaks)))


class _ByInput:
    """The runs whose input size is known, by rising peak, as arrays."""

    def __init__(self, np: Any, inputs: Floats, peaks: Floats) -> None:
        order = np.argsort(peaks)
        self._np, self._peaks, self._x = np, peaks[order], np.log(inputs[order])
        self._low, self._high = _CLAMP[0] * self._peaks[0], _CLAMP[1] * self._peaks[-1]

    @classmethod
    def of(cls, inputs: Sequence[float], peaks: Sequence[float]) -> _ByInput | None:
        """None if there is no NumPy, or nothing to be learnt from the input's size."""
        np = _numpy()
        if np is None:
            return None
        known = np.isfinite(sizes := np.asarray(inputs, dtype=float))
        sizes, tops = sizes[known], np.asarray(peaks, dtype=float)[known]
        if len(tops) < _FEWEST or sizes.max() - sizes.min() <= _SAME * sizes.max():
            return None
        return cls(np, sizes, tops)

    def view(self, name: str, size: float) -> Peaks:
        """The peak that predictor *name* expects for input *size*, without a tail."""
        np, away = self._np, self._x - math.log(size)
        weights = self._kernel(np.abs(away), _REACH[name])
        if name == "neighbours":
            values = self._peaks
        elif name == "power law":
            values, weights = self._power(math.log(size)), weights[self._residuals[0]]
        else:
            values = self._local_line(away, weights)
            order = np.argsort(values)
            values, weights = values[order], weights[order]
        kept = weights > _LEAST_WEIGHT * weights.max()
        values, weights = np.clip(values[kept], self._low, self._high), weights[kept]
        return Peaks(
            values=values.tolist(),
            weights=weights.tolist(),
            count=float(weights.sum() ** 2 / (weights * weights).sum()),
        )

    def _kernel(self, distance: Floats, per_root: float) -> Floats:
        """Gaussian weights whose bandwidth reaches ``per_root * sqrt(n)`` runs, 8 at least."""
        count = len(distance)
        reach = min(count - 1, max(_NEIGHBOURS, round(per_root * math.sqrt(count))))
        width = max(float(self._np.partition(distance, reach)[reach]), 1e-6)
        weights: Floats = self._np.exp(-0.5 * (distance / width) ** 2) + 1e-9
        return weights

    @functools.cached_property
    def _residuals(self) -> tuple[Any, Floats, float, float]:
        """Of the power law: the order of its leave-one-out residuals, they, and two points.

        The residual without its own run is e / (1 - h), h being the run's leverage (Allen, 1974).
        """
        x, y = self._x, self._np.log(self._peaks)
        centre, mean = float(x.mean()), float(y.mean())
        away = x - centre
        variance = float((away * away).sum())
        slope = float((away * (y - mean)).sum()) / variance if variance > _NO_SPREAD else 0.0
        leverage = 1.0 / len(x) + away * away / max(variance, _NO_SPREAD)
        residuals = (y - mean - slope * away) / (1.0 - self._np.minimum(leverage, _LEVERAGE))
        order = self._np.argsort(residuals)
        return order, residuals[order], mean - slope * centre, slope

    def _power(self, x: float) -> Floats:
        """A power law, times its leave-one-out residuals: those of about the same input."""
        _, residuals, at_zero, slope = self._residuals
        values: Floats = self._np.exp(self._np.clip(at_zero + slope * x + residuals, -50, 50))
        return values

    def _local_line(self, away: Floats, weights: Floats) -> Floats:
        """A line over log input through the nearer runs, plus their leave-one-out residuals."""
        np, peaks = self._np, self._peaks
        share = weights / weights.sum()
        centre, mean = float((share * away).sum()), float((share * peaks).sum())
        offset = away - centre
        variance = float((share * offset * offset).sum())
        slope, leverage = 0.0, share
        if variance > _NO_SPREAD:
            slope = float((share * offset * (peaks - mean)).sum()) / variance
            leverage = share + share * offset * offset / variance
        # Not below half the smallest peak: a steep line must not predict next to nothing.
        residuals = (peaks - np.maximum(mean + slope * offset, self._low)) / (
            1.0 - np.minimum(leverage, _LEVERAGE)
        )
        values: Floats = max(mean - slope * centre, self._low) + residuals
        return values


def _numpy() -> Any:
    """NumPy, or None if the extra ``history`` is not installed."""
    try:
        import numpy as np
    except ImportError:
        return None
    return np
