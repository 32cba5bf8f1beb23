"""The predictors on data of the form that each is for, and what a run costs on a ladder."""

import math

import pytest

from mlops_ext.memory import MemoryPlan, Quantity
from mlops_ext.memory.history.allocations import Prices, outcome_of
from mlops_ext.memory.history.predictors import Runs, predict

MB = 1e6
SIZES = [number * MB for number in range(1, 13)]
FORMS = {
    "line": lambda size: 1e9 + 50.0 * size,
    "power law": lambda size: 3e5 * size**0.5,
    "local line": lambda size: 1e9 + 2e8 * math.log(size / MB),
}


@pytest.mark.parametrize("size", [2 * MB, 6.5 * MB, 12 * MB])
@pytest.mark.parametrize("name", FORMS)
def test_a_predictor_is_exact_where_the_peaks_are_of_its_form(name, size):
    pytest.importorskip("numpy")
    form = FORMS[name]
    found = predict(Runs(inputs=SIZES, peaks=[form(each) for each in SIZES]), size)[name]
    assert found.values[0] == pytest.approx(form(size))
    assert found.values[-1] == pytest.approx(form(size))


@pytest.mark.parametrize("name", ["line", "power law"])
def test_a_predictor_expects_what_each_run_would_have_missed_without_itself(name):
    np = pytest.importorskip("numpy")
    peaks = [FORMS[name](size) * (1.1 if at % 2 else 0.95) for at, size in enumerate(SIZES)]
    x, y, at = np.array(SIZES), np.array(peaks), 6 * MB
    if name == "power law":
        x, y, at = np.log(x), np.log(y), math.log(at)
    expected = []
    for left_out in range(len(x)):
        rest = np.arange(len(x)) != left_out
        missed = y[left_out] - np.polyval(np.polyfit(x[rest], y[rest], 1), x[left_out])
        expected.append(np.polyval(np.polyfit(x, y, 1), at) + missed)
    if name == "power law":
        expected = np.exp(expected)
    found = predict(Runs(inputs=SIZES, peaks=peaks), 6 * MB)[name]
    assert found.values == pytest.approx(sorted(expected))


@pytest.mark.parametrize("name", ["neighbours", "near neighbours"])
def test_runs_with_about_the_same_input_count_most(name):
    pytest.importorskip("numpy")
    small, large = [MB * (1 + at / 100) for at in range(20)], [1e5 * MB] * 20
    runs = Runs(inputs=small + large, peaks=[1e9] * 20 + [9e9] * 20)
    assert predict(runs, MB)[name].median == 1e9
    assert predict(runs, 1e5 * MB)[name].median == 9e9


def test_the_predictor_for_changed_tasks_looks_at_the_last_four_runs():
    runs = Runs(inputs=[math.nan] * 6, peaks=[9.0, 8.0, 1.0, 4.0, 2.0, 3.0])
    assert predict(runs, None)["recent"].values == [1.0, 2.0, 3.0, 4.0]
    few = Runs(inputs=[math.nan] * 4, peaks=[1.0, 2.0, 3.0, 4.0])
    assert "recent" not in predict(few, None)


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
