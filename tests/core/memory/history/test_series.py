"""The runs that are kept in mind of one task."""

import pytest

from mlops_ext.memory.history import Observation
from mlops_ext.memory.history.series import Series


def add(series, peak, ratio, times):
    for _ in range(times):
        series.add(Observation(peak=peak, ratio=ratio, runtime_s=60.0), version="")


@pytest.mark.parametrize(("before", "after"), [(44, 2), (17, 3), (10, 4)])
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_after_a_change_the_runs_since_are_kept_and_no_other(before, after, factor):
    series = Series()
    add(series, 10**9, 1.0, before)
    add(series, int(10**9 * factor), factor, after - 1)
    assert len(series) == before + after - 1, "it can still be chance"
    add(series, int(10**9 * factor), factor, 1)
    assert len(series) == after
    assert series.span == (10**9 * factor, 10**9 * factor)
