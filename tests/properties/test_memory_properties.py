"""What holds of sizes, ladders and plans whatever the numbers are."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_ext.errors import QuantityError
from mlops_ext.memory import (
    Attempt,
    Caps,
    Evidence,
    Fail,
    Features,
    MemorySettings,
    Quantity,
    Retry,
    TaskKey,
)
from mlops_ext.memory.history import HistoryPolicy, InMemoryHistory
from mlops_ext.memory.history.allocations import (
    _TAIL_STEPS,
    Peaks,
    Prices,
    add_tail,
    best_ladder,
    outcome_of,
)
from mlops_ext.memory.history.observations import CURVE_POINTS, Observation, compress_curve
from mlops_ext.memory.history.predictors import Views
from mlops_ext.memory.history.resize import Choice, Terms, cost_of

KEY = TaskKey(pipeline="p", step="s")
bytes_ = st.integers(min_value=0, max_value=2**63 - 1)
peaks_ = st.integers(min_value=1, max_value=2**45)
inputs_ = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
runtimes_ = st.floats(min_value=-1, max_value=1e7)
prices_ = st.builds(
    Prices, failed=st.floats(min_value=0.05, max_value=5), kill=st.floats(min_value=0, max_value=50)
)


@st.composite
def distributions(draw, most=7):
    values = sorted(
        draw(st.sets(st.integers(min_value=1, max_value=100), min_size=1, max_size=most))
    )
    weights = [draw(st.integers(min_value=1, max_value=9)) for _ in values]
    return Peaks(
        values=[float(value) for value in values],
        weights=[float(weight) for weight in weights],
        count=float(sum(weights)),
    )


@given(bytes_)
def test_a_size_survives_its_own_spelling(size):
    quantity = Quantity(size)
    assert Quantity.parse(str(quantity)) == quantity == size


@given(
    st.integers(min_value=0, max_value=10**6), st.sampled_from(["Ki", "Mi", "Gi", "k", "M", "G"])
)
def test_thousandths_are_exact(number, suffix):
    base = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}[suffix]
    text = f"{number // 1000}.{number % 1000:03}{suffix}"
    assert Quantity.parse(text) == -(-number * base // 1000)


@given(st.text(max_size=12))
def test_a_text_is_a_size_or_an_error_that_names_it(text):
    found = None
    try:
        found = Quantity.parse(text)
    except QuantityError as error:
        found = error
    assert found.text is text if isinstance(found, QuantityError) else 0 <= found < 2**63


def expected_cost(ladder, peaks, prices):
    pairs = zip(peaks.values, peaks.weights, strict=True)
    total = sum(weight * outcome_of(ladder, value, 2.0).cost(prices) for value, weight in pairs)
    return total / sum(peaks.weights)


@given(distributions(), prices_)
@settings(max_examples=100, deadline=None)
def test_the_ladder_is_as_cheap_as_the_best_of_all_ladders(peaks, prices):
    found = best_ladder(peaks, prices)
    top = peaks.values[-1]
    ladders = (
        [*chosen, top]
        for length in range(len(peaks.values))
        for chosen in itertools.combinations(peaks.values[:-1], length)
    )
    best = min(expected_cost(ladder, peaks, prices) for ladder in ladders)
    assert math.isclose(expected_cost(found, peaks, prices), best, rel_tol=1e-9, abs_tol=1e-9)


@settings(deadline=None, max_examples=50)
@given(distributions(most=30), prices_, st.integers(min_value=1, max_value=5))
def test_a_ladder_rises_to_the_largest_peak_and_keeps_to_its_length(peaks, prices, most):
    ladder = best_ladder(peaks, prices, max_length=most)
    assert ladder == sorted(set(ladder))
    assert ladder[-1] == peaks.values[-1]
    assert len(ladder) <= most


@given(distributions(most=60))
@settings(deadline=None, max_examples=50)
def test_the_tail_adds_the_mass_of_one_more_run(peaks):
    whole = add_tail(peaks)
    assert list(whole.values) == sorted(whole.values)
    assert whole.values[-1] > peaks.values[-1]
    total = sum(peaks.weights)
    above = sum(
        weight
        for value, weight in zip(whole.values, whole.weights, strict=True)
        if value > peaks.values[-1]
    )
    assert math.isclose(sum(whole.weights) - above, total)
    assert math.isclose(above / (total + above), 1 / (peaks.count + 1))


@given(st.lists(st.tuples(inputs_, peaks_), min_size=1, max_size=40), inputs_)
@settings(max_examples=60, deadline=None)
def test_every_predictor_predicts_positive_peaks_in_reach_of_what_was_seen(rows, size):
    known = Features(input_bytes=size).known_input
    inputs = [Features(input_bytes=value).known_input or math.nan for value, _ in rows]
    tops = [float(peak) for _, peak in rows]
    views = Views(inputs=inputs, peaks=tops)
    for name in views.names(known):
        peaks = views.view(name, known)
        assert list(peaks.values) == sorted(peaks.values)
        assert 0.49 * min(tops) <= peaks.values[0]
        assert peaks.values[-len(_TAIL_STEPS) - 1] <= 1.31 * max(tops)
        assert all(weight > 0 for weight in peaks.weights)
        assert 0.999 <= peaks.count <= len(rows) * 1.001


@given(
    st.lists(st.tuples(peaks_, inputs_, runtimes_, st.booleans()), max_size=12),
    inputs_,
    st.one_of(st.none(), bytes_),
    st.one_of(st.none(), st.integers(min_value=1, max_value=2**45)),
)
@settings(max_examples=30, deadline=None)
def test_whatever_was_seen_attempts_rise_stay_below_the_cap_and_end(rows, size, request, cap):
    policy = HistoryPolicy(records=InMemoryHistory())
    for peak, input_bytes, runtime_s, censored in rows:
        features = Features(input_bytes=input_bytes)
        policy.observe(KEY, features, Quantity(peak), runtime_s, censored=censored)
    caps = Caps(node=None if cap is None else Quantity(cap))
    wanted = None if request is None else Quantity(request)
    plan = policy.decide(KEY, Features(input_bytes=size), wanted, caps)
    given_, memory = [], plan.first_limit
    for retries in range(10):
        given_.append(memory)
        attempt = Attempt(memory=memory, oom_retries=retries)
        decision = policy.on_failure(plan, attempt, Evidence(oom_killed=True))
        if isinstance(decision, Fail):
            break
        assert isinstance(decision, Retry)
        memory = decision.memory
    assert len(given_) <= 1 + MemorySettings().max_oom_retries
    sizes = [memory for memory in given_ if memory is not None]
    assert sizes == sorted(set(sizes))
    assert all(0 < size <= (cap or 2**63) for size in sizes)
    assert plan.reason.endswith(".")


curves_ = st.lists(
    st.tuples(st.floats(min_value=0, max_value=1e6), st.integers(min_value=0, max_value=2**45)),
    max_size=200,
)


@given(curves_)
@settings(deadline=None, max_examples=50)
def test_a_curve_keeps_its_peak_and_few_points(curve):
    kept = compress_curve(curve)
    assert len(kept) <= CURVE_POINTS
    assert max((size for _, size in kept), default=None) == max(
        (size for _, size in curve), default=None
    )
    assert all(low[1] < high[1] for low, high in itertools.pairwise(kept))
    assert compress_curve(kept) == kept


@settings(deadline=None, max_examples=50)
@given(
    curves_,
    st.floats(min_value=1, max_value=2**45),
    st.builds(
        Choice,
        start=st.just(1.0),
        threshold=st.floats(min_value=0.5, max_value=1.0),
        growth=st.floats(min_value=1.05, max_value=3.0),
    ),
    st.one_of(st.just(0.0), st.floats(min_value=0, max_value=1e6)),
)
def test_a_replayed_run_ends_and_is_never_given_less_than_it_used(curve, start, choice, latency_s):
    kept = compress_curve(curve)
    runtime_s = kept[-1][0] + 1.0 if kept else 1.0
    run = Observation(peak=1, curve=kept, runtime_s=runtime_s, first_limit=int(start))
    allocated = runtime_s * cost_of(run, choice, Terms(latency_s=latency_s))
    used = sum(
        size * (following - when)
        for (when, size), (following, _) in itertools.pairwise([*kept, (runtime_s, 0)])
    )
    assert allocated >= 0.999 * used
    killed = cost_of(run, choice, Terms(latency_s=latency_s, kill=1e300)) >= 1e300
    assert not killed or kept[-1][1] > int(start)
