"""Predictive distributions of a task's peak: several views of the same history.

Each predictor turns earlier runs and the input size of the next one into a distribution of its
peak. Those that look at the input size need NumPy; without it the others stand alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlops_ext.memory.history.allocations import Peaks

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float64]

_Predictor = Callable[[Any, Any, Any, float], tuple[Any, Any]]

DEFAULT = "all"
"""The predictor that needs nothing: all earlier peaks, whatever the input."""
RECENT = "recent"
"""The predictor for changed tasks: the last few peaks."""
_RECENT = 4
"""Runs that it looks at."""
_FEWEST = 5
"""With fewer runs the input size is not looked at: a line through them proves nothing."""
_CLAMP = (0.5, 1.3)
"""No prediction below or above these multiples of the smallest and largest peak seen."""
_NEIGHBOURS = 8
"""Least number of runs within one bandwidth of a kernel."""
_LEAST_WEIGHT = 1e-6
"""Weights below this fraction of the largest are dropped."""
_SAME = 1e-9
"""Inputs that differ by less than this, relatively, are the same."""
_NO_SPREAD = 1e-12
"""A variance of log input below this has no line through it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Earlier runs of a task, oldest first.

    Attributes:
        inputs: their input sizes in bytes; NaN where not known.
        peaks: their peaks in bytes.
    """

    inputs: Sequence[float]
    peaks: Sequence[float]


def predict(runs: Runs, size: float | None) -> dict[str, Peaks]:
    """The peak that each predictor expects for input *size*, by its name, the default first.

    One that has no view is left out.
    """
    views = {DEFAULT: _equal(runs.peaks)}
    if len(runs.peaks) > _RECENT:
        views[RECENT] = _equal(runs.peaks[-_RECENT:])
    np = _numpy()
    if np is None or size is None:
        return views
    inputs = np.asarray(runs.inputs, dtype=float)
    peaks = np.asarray(runs.peaks, dtype=float)
    known = np.isfinite(inputs)
    if not known.all():
        inputs, peaks = inputs[known], peaks[known]
    if len(peaks) < _FEWEST or inputs.max() - inputs.min() <= _SAME * inputs.max():
        return views
    low, high = _CLAMP[0] * float(peaks.min()), _CLAMP[1] * float(peaks.max())
    for name, predictor in _BY_INPUT.items():
        values, weights = predictor(np, inputs, peaks, size)
        if np.isfinite(values).all():
            views[name] = _weighted(np, np.clip(values, low, high), weights)
    return views


def _equal(peaks: Sequence[float]) -> Peaks:
    return Peaks(values=sorted(peaks), weights=[1.0] * len(peaks), count=float(len(peaks)))


def _weighted(np: Any, values: Floats, weights: Floats | None) -> Peaks:
    if weights is None:
        return _equal(values.tolist())
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    kept = weights > _LEAST_WEIGHT * weights.max()
    if not kept.all():
        values, weights = values[kept], weights[kept]
    total = float(weights.sum())
    return Peaks(
        values=values.tolist(),
        weights=weights.tolist(),
        count=total * total / float((weights * weights).sum()),
    )


def _numpy() -> Any:
    """NumPy, or None where the extra ``history`` is not installed."""
    try:
        import numpy as np
    except ImportError:
        return None
    return np


def _line(np: Any, inputs: Floats, peaks: Floats, size: float) -> tuple[Floats, None]:
    """A straight line through the runs, plus its leave-one-out residuals."""
    fitted, at_size = _least_squares(np, inputs, peaks, size)
    return at_size + fitted, None


def _power(np: Any, inputs: Floats, peaks: Floats, size: float) -> tuple[Floats, None]:
    """A power law, times its leave-one-out residuals."""
    residuals, at_size = _least_squares(
        np, np.log(inputs), np.log(peaks), math.log(size), steepest=2.0
    )
    return np.exp(np.clip(at_size + residuals, -50.0, 50.0)), None


def _least_squares(
    np: Any, x: Floats, y: Floats, at: float, steepest: float = math.inf
) -> tuple[Floats, float]:
    """Leave-one-out residuals of the least-squares line, and its value at *at*.

    The residual without its own run is e / (1 - h), h being the run's leverage (Allen, 1974);
    h is taken as 0.7 at most, since a single far run would otherwise set the tail.
    """
    centre, mean = float(x.mean()), float(y.mean())
    away = x - centre
    variance = float((away * away).sum())
    slope = float((away * (y - mean)).sum()) / variance
    slope = min(max(slope, -steepest), steepest)
    leverage = 1.0 / len(x) + away * away / variance
    residuals = (y - mean - slope * away) / np.maximum(1.0 - leverage, 0.3)
    return residuals, mean + slope * (at - centre)


def _near(np: Any, distance: Floats, per_root: float) -> Floats:
    """Gaussian weights whose bandwidth reaches ``per_root * sqrt(n)`` neighbours, 8 at least."""
    count = len(distance)
    reach = min(count - 1, max(_NEIGHBOURS, round(per_root * math.sqrt(count))))
    width = max(float(np.partition(distance, reach)[reach]), 1e-6)
    ratio = distance / width
    weights: Floats = np.exp(-0.5 * ratio * ratio) + 1e-9
    return weights


def _neighbours(
    per_root: float,
) -> Callable[[Any, Floats, Floats, float], tuple[Floats, Floats]]:
    """The peaks of runs with about the same input, as they were."""

    def predictor(np: Any, inputs: Floats, peaks: Floats, size: float) -> tuple[Floats, Floats]:
        return peaks, _near(np, np.abs(np.log(inputs) - math.log(size)), per_root)

    return predictor


def _local_line(np: Any, inputs: Floats, peaks: Floats, size: float) -> tuple[Floats, Floats]:
    """A line over log input through the nearer runs, plus their residuals."""
    away = np.log(inputs) - math.log(size)
    weights = _near(np, np.abs(away), 6.0)
    share = weights / weights.sum()
    centre, mean = float((share * away).sum()), float((share * peaks).sum())
    offset = away - centre
    variance = float((share * offset * offset).sum())
    slope = 0.0
    if variance > _NO_SPREAD:
        slope = float((share * offset * (peaks - mean)).sum()) / variance
    # Not below half the smallest peak: a steep line must not predict next to nothing.
    lowest = _CLAMP[0] * float(peaks.min())
    fitted = np.maximum(mean + slope * offset, lowest)
    return max(mean - slope * centre, lowest) + (peaks - fitted), weights


_BY_INPUT: dict[str, _Predictor] = {
    "line": _line,
    "power law": _power,
    "neighbours": _neighbours(3.0),
    "near neighbours": _neighbours(1.0),
    "local line": _local_line,
}
