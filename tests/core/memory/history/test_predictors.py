"""The predictors on data of the form that each is for, and what a run costs on a ladder."""

import math

import pytest

from mlops_ext.memory import MemoryPlan, Quantity
from mlops_ext.memory.history.allocations import _TAIL_STEPS, Prices, outcome_of
from mlops_ext.memory.history.predictors import Views

MB = 1e6
TAIL = len(_TAIL_STEPS)
SIZES = [number * MB for number in range(1, 13)]
FORMS = {
    "power law": lambda size: 3e5 * size**0.5,
    "local line": lambda size: 1e9 + 2e8 * math.log(size / MB),
}


def runs_of(inputs, peaks):
    return {"inputs": inputs, "peaks": peaks}


def view(runs, name, size):
    """What predictor *name* expects: the values up to the largest, its tail left out."""
    found = Views(**runs).view(name, size)
    return found.values[:-TAIL], found.weights[:-TAIL]


@pytest.mark.parametrize("size", [2 * MB, 6.5 * MB, 12 * MB])
@pytest.mark.parametrize("name", FORMS)
def test_a_predictor_is_exact_where_the_peaks_are_of_its_form(name, size):
    pytest.importorskip("numpy")
    form = FORMS[name]
    values, _ = view(runs_of(inputs=SIZES, peaks=[form(each) for each in SIZES]), name, size)
    assert values[0] == pytest.approx(form(size))
    assert values[-1] == pytest.approx(form(size))


def test_a_power_law_expects_what_each_run_would_have_missed_without_itself():
    np = pytest.importorskip("numpy")
    peaks = [FORMS["power law"](size) * (1.1 if at % 2 else 0.95) for at, size in enumerate(SIZES)]
    x, y, at = np.log(SIZES), np.log(peaks), math.log(6 * MB)
    expected = []
    for left_out in range(len(x)):
        rest = np.arange(len(x)) != left_out
        missed = y[left_out] - np.polyval(np.polyfit(x[rest], y[rest], 1), x[left_out])
        expected.append(math.exp(np.polyval(np.polyfit(x, y, 1), at) + missed))
    values, weights = view(runs_of(inputs=SIZES, peaks=peaks), "power law", 6 * MB)
    assert values == pytest.approx(sorted(expected))
    nearest = expected[5]
    assert weights[sorted(expected).index(nearest)] == max(weights)


def test_runs_with_about_the_same_input_count_most():
    pytest.importorskip("numpy")
    small, large = [MB * (1 + at / 100) for at in range(20)], [1e5 * MB] * 20
    runs = runs_of(inputs=small + large, peaks=[1e9] * 20 + [9e9] * 20)
    assert Views(**runs).view("neighbours", MB).median == 1e9
    assert Views(**runs).view("neighbours", 1e5 * MB).median == 9e9


def test_the_predictor_for_changed_tasks_looks_at_the_last_four_runs():
    runs = runs_of(inputs=[math.nan] * 6, peaks=[9.0, 8.0, 1.0, 4.0, 2.0, 3.0])
    assert view(runs, "recent", None)[0] == [1.0, 2.0, 3.0, 4.0]
    few = runs_of(inputs=[math.nan] * 4, peaks=[1.0, 2.0, 3.0, 4.0])
    assert "recent" not in Views(**few).names(None)


@pytest.mark.parametrize(
    ("peak", "cost"),
    [
        (1.0, 0.0),
        (1.5, 0.5 + 10 + 0.5),
        (2.0, 0.5 + 10),
        (3.0, 0.5 + 10 + 1 + 10 + 1.0),
        (4.0, 0.5 + 10 + 1 + 10),
        (5.0, 0.5 + 10 + 1 + 10 + 2 + 10 + 3.0),
    ],
)
def test_a_run_costs_what_was_lost_and_what_was_given_too_much(peak, cost):
    outcome = outcome_of([1.0, 2.0], peak, growth=2.0)
    assert outcome.cost(Prices(failed=0.5, kill=10.0)) == cost


def test_a_plan_goes_rung_by_rung_before_it_grows():
    low, middle, high = (Quantity.parse(text) for text in ("1000Mi", "1200Mi", "1500Mi"))
    plan = MemoryPlan(ladder=(low, middle, high), reason="known peaks", growth=2.0)
    assert plan.after(low) == middle
    assert plan.after(Quantity.parse("1100Mi")) == middle
    assert plan.after(middle) == high
    assert plan.after(high) == Quantity.parse("3000Mi")
