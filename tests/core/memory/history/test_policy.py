"""The policy that learns: what it gives, when it falls back, and how soon it follows."""

import builtins
import decimal
import fractions
import itertools
import math
import random
import sqlite3

import pytest

from mlops_ext.extensions.builtin import mlops_ext_memory_policies
from mlops_ext.memory import (
    Attempt,
    Caps,
    Evidence,
    Fail,
    Features,
    InPlace,
    MemoryPlan,
    MemorySettings,
    Quantity,
    TaskKey,
)
from mlops_ext.memory.history import History, HistoryPolicy, InMemoryHistory, Observation
from mlops_ext.memory.history.predictors import Views

KEY = TaskKey(pipeline="train", step="fit", version="1")
GB = 10**9
MI = 1024**2
OOM = Evidence(oom_killed=True)


@pytest.fixture
def policy():
    return HistoryPolicy(records=InMemoryHistory())


def q(text):
    return Quantity.parse(text)


def observe(policy, peaks, *, sizes=None, runtime_s=600.0, key=KEY, **more):
    for index, peak in enumerate(peaks):
        features = Features(input_bytes=sizes[index] if sizes else None)
        policy.observe(key, features, Quantity(int(peak)), runtime_s, **more)


def decide(policy, *, size=None, request="64Gi", key=KEY, caps=None):
    wanted = q(request) if request else None
    return policy.decide(key, Features(input_bytes=size), wanted, caps or Caps())


def test_the_first_run_ever_gets_the_request_then_doubling(policy):
    plan = decide(policy, request="3Gi")
    assert plan.ladder == (q("3Gi"),)
    assert "First run" in plan.reason
    retry = policy.on_failure(plan, Attempt(memory=plan.first_limit), OOM)
    assert retry.memory == q("6Gi")


def test_the_first_run_without_a_request_has_no_limit(policy):
    assert decide(policy, request=None).first_limit is None


def test_history_replaces_the_request(policy):
    observe(policy, [2 * GB + k * MI for k in range(30)])
    plan = decide(policy)
    assert 2 * GB + 29 * MI <= plan.first_limit <= 2.1 * GB
    assert plan.reason.startswith("30 earlier runs peaked between 1.86Gi and 1.89Gi")
    assert plan.request == q("64Gi")


def test_few_runs_get_a_wider_margin_than_many(policy):
    few, many = policy, HistoryPolicy(records=InMemoryHistory())
    observe(few, [GB] * 2)
    observe(many, [GB] * 40)
    assert decide(few).ladder[-1] > decide(many).ladder[-1] > GB


def test_the_input_size_is_used_where_it_tells_something(policy):
    rng = random.Random(0)
    sizes = [rng.uniform(1, 10) * GB for _ in range(60)]
    observe(policy, [2 * size * rng.uniform(0.99, 1.01) for size in sizes], sizes=sizes)
    small, large = decide(policy, size=2 * GB), decide(policy, size=8 * GB)
    assert 4 * GB * 0.99 < small.first_limit < 4.6 * GB
    assert 16 * GB * 0.99 < large.first_limit < 17.5 * GB
    assert "the size of the input tells which" in large.reason
    unknown = decide(policy, size=None)
    assert unknown.ladder[-1] > 18 * GB


def test_an_input_that_says_nothing_changes_nothing(policy):
    rng = random.Random(1)
    peaks = [rng.uniform(1, 2) * GB for _ in range(60)]
    observe(policy, peaks, sizes=[float(rng.randrange(1, 10)) * GB for _ in peaks])
    firsts = [decide(policy, size=size * GB).first_limit for size in (1, 5, 9)]
    assert max(firsts) < 1.5 * min(firsts)


@pytest.mark.parametrize("size", [0, -1, float("nan"), float("inf"), 1e300, 5e-324])
def test_input_sizes_that_make_no_sense_count_as_unknown(policy, size):
    observe(policy, [GB, 2 * GB] * 10, sizes=[float(size)] * 20)
    assert decide(policy, size=size).ladder == decide(policy, size=None).ladder


@pytest.mark.parametrize("runtime_s", [0.0, -5.0, float("nan"), float("inf")])
def test_run_times_that_make_no_sense_do_no_harm(policy, runtime_s):
    observe(policy, [GB, 2 * GB] * 10, runtime_s=runtime_s)
    assert decide(policy).first_limit >= GB


def test_a_peak_of_zero_is_no_observation(policy):
    observe(policy, [0, 0])
    assert "First run" in decide(policy).reason


def test_tiny_tasks_get_what_a_container_needs_to_start(policy):
    observe(policy, [1000] * 10)
    assert decide(policy, request=None).ladder == (MemorySettings().min_memory,)


def test_no_rung_is_above_the_cap_and_the_cap_is_named(policy):
    observe(policy, [2 * GB, 4 * GB, 8 * GB] * 5)
    plan = decide(policy, caps=Caps(node=q("5Gi"), node_name="big-1", max_memory=q("3Gi")))
    assert plan.ladder[-1] == q("3Gi")
    assert "max_memory" in plan.reason
    decision = policy.on_failure(plan, Attempt(memory=q("3Gi")), OOM)
    assert isinstance(decision, Fail)
    assert "max_memory" in decision.reason


def test_a_kill_is_at_least_its_limit_and_never_a_peak(policy):
    observe(policy, [4 * GB], censored=True)
    plan = decide(policy, request="2Gi")
    assert 8 * GB <= plan.first_limit < 8 * GB + MI
    assert plan.reason == "Killed at 3.73Gi before, and never got through: 7.45Gi."
    capped = decide(policy, request="2Gi", caps=Caps(node=q("5Gi")))
    assert capped.ladder == (q("5Gi"),)
    assert "the cap is 5Gi (the largest node)" in capped.reason
    observe(policy, [5 * GB])
    after = decide(policy, request="2Gi")
    assert 5 * GB <= after.first_limit < 8 * GB
    assert "1 earlier run peaked at 4.66Gi" in after.reason


def test_a_kill_without_a_success_raises_the_ladder(policy):
    observe(policy, [GB] * 20)
    before = decide(policy, request=None).ladder[-1]
    observe(policy, [2 * GB], censored=True)
    assert decide(policy, request=None).ladder[-1] >= 4 * GB > before
    observe(policy, [GB] * 51)
    assert decide(policy).ladder[-1] < 2 * GB


def kills_and_firsts(policy, peaks, size=None):
    """Kills of each run, and its first allocation, as an orchestrator would go on."""
    kills, firsts = [], []
    for peak in peaks:
        plan = decide(policy, size=size)
        memory, killed = plan.first_limit, 0
        firsts.append(memory)
        while memory < peak:
            observe(policy, [memory], censored=True)
            memory = policy.on_failure(plan, Attempt(memory=memory, oom_retries=killed), OOM).memory
            killed += 1
        observe(policy, [peak])
        kills.append(killed)
    return kills, firsts


@pytest.mark.parametrize("earlier", [20, 200, 1000])
def test_a_task_that_needs_more_now_is_followed_within_a_few_runs(policy, earlier):
    rng = random.Random(earlier)
    observe(policy, [rng.uniform(1, 1.2) * GB for _ in range(earlier)])
    kills, _ = kills_and_firsts(policy, [rng.uniform(4, 4.8) * GB for _ in range(20)])
    assert sum(1 for killed in kills if killed) <= 5
    assert sum(kills[6:]) <= 2


@pytest.mark.parametrize("earlier", [20, 200])
def test_a_task_that_needs_less_now_is_followed_within_a_few_runs(policy, earlier):
    rng = random.Random(earlier)
    observe(policy, [rng.uniform(4, 4.8) * GB for _ in range(earlier)])
    _, firsts = kills_and_firsts(policy, [rng.uniform(1, 1.2) * GB for _ in range(20)])
    assert max(firsts[12:]) < 2 * GB


def test_another_version_starts_from_the_history_of_the_step(policy):
    observe(policy, [GB] * 30)
    newer = TaskKey(pipeline="train", step="fit", version="2")
    assert decide(policy, key=newer).first_limit < 1.1 * GB
    observe(policy, [3 * GB + k for k in range(12)], key=newer)
    assert 3 * GB < decide(policy, key=newer).first_limit < 3.2 * GB
    other = TaskKey(pipeline="train", step="other")
    assert "First run" in decide(policy, key=other).reason


def test_kills_of_short_tasks_are_dearer_than_of_long_ones():
    rng = random.Random(5)
    peaks = [rng.lognormvariate(0, 0.5) * GB for _ in range(100)]
    firsts = {}
    for runtime_s in (5.0, 36000.0):
        policy = HistoryPolicy(
            records=InMemoryHistory(), settings=MemorySettings(kill_price=0.2, restart_s=60.0)
        )
        observe(policy, peaks, runtime_s=runtime_s)
        firsts[runtime_s] = decide(policy).first_limit
    assert firsts[5.0] > firsts[36000.0]


def test_a_dearer_kill_means_no_less_memory():
    """But for what the price changes in how the predictors are mixed: 5 %."""
    rng = random.Random(6)
    peaks = [rng.lognormvariate(0, 0.7) * GB for _ in range(80)]
    firsts = []
    for price in (0.0, 0.5, 1.0, 4.0, 20.0):
        settings = MemorySettings(kill_price=price)
        policy = HistoryPolicy(records=InMemoryHistory(), settings=settings)
        observe(policy, peaks)
        firsts.append(decide(policy).first_limit)
    assert all(dearer > 0.95 * cheaper for cheaper, dearer in itertools.pairwise(firsts))
    assert firsts[-1] > 1.2 * firsts[0]


def test_the_ladder_leaves_a_retry_for_what_was_never_seen():
    settings = MemorySettings(kill_price=0.0, restart_s=0.0, time_to_failure=0.01)
    policy = HistoryPolicy(records=InMemoryHistory(), settings=settings)
    observe(policy, [GB * 1.3**k for k in range(20)])
    plan = decide(policy)
    assert 2 <= len(plan.ladder) <= settings.max_oom_retries
    memory, retries = plan.first_limit, 0
    while not isinstance(
        decision := policy.on_failure(plan, Attempt(memory=memory, oom_retries=retries), OOM), Fail
    ):
        memory, retries = decision.memory, retries + 1
    assert memory > plan.ladder[-1]


def test_the_last_retry_gets_no_less_than_the_request(policy):
    observe(policy, [GB] * 30)
    plan = decide(policy, request="100Gi")
    decision = policy.on_failure(plan, Attempt(memory=q("5Gi"), oom_retries=3), OOM)
    assert decision.memory == q("100Gi")


def test_without_numpy_the_input_is_ignored_and_the_rest_works(policy, monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **named):
        if name.partition(".")[0] == "numpy":
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", refuse)
    sizes = [float(k) * GB for k in range(1, 31)]
    observe(policy, [2 * size for size in sizes], sizes=sizes)
    plan = decide(policy, size=GB)
    assert plan.ladder[-1] > 60 * GB
    views = Views(inputs=sizes, peaks=[2 * size for size in sizes])
    assert set(views.names(GB)) == {"all", "recent"}


def test_a_broken_history_falls_back_to_the_request_and_says_so(tmp_path, caplog):
    path = tmp_path / "h.sqlite"
    path.write_text("this is no database" * 200)
    policy = HistoryPolicy(records=History(path))
    plan = decide(policy, request="3Gi")
    assert plan.first_limit == q("3Gi")
    assert "History unusable" in plan.reason
    observe(policy, [GB])
    assert caplog.text.count("memory history") == 2


def test_two_processes_see_each_others_runs(tmp_path):
    here, there = (HistoryPolicy(records=History(tmp_path / "h.sqlite")) for _ in range(2))
    observe(here, [GB] * 3)
    assert decide(there).first_limit < 1.3 * GB
    observe(there, [3 * GB] * 3)
    assert decide(here).ladder[-1] > 3 * GB


def test_a_fresh_process_decides_as_the_one_that_watched(tmp_path):
    rng = random.Random(2)
    watcher = HistoryPolicy(records=History(tmp_path / "h.sqlite"))
    sizes = [rng.uniform(1, 10) * GB for _ in range(40)]
    observe(watcher, [size**0.7 * 3000 * rng.uniform(1, 1.3) for size in sizes], sizes=sizes)
    fresh = HistoryPolicy(records=History(tmp_path / "h.sqlite"))
    for size in (2 * GB, 7 * GB, None):
        assert decide(fresh, size=size) == decide(watcher, size=size)


def test_a_hundred_thousand_records_are_no_trouble(tmp_path):
    history = History(tmp_path / "h.sqlite")
    history.append(KEY, Observation(peak=GB, runtime_s=60.0))
    with sqlite3.connect(history.path) as database:
        database.executemany(
            "INSERT INTO run (pipeline, step, version, peak, runtime_s, input_bytes, censored,"
            " curve, costs, first, ratio) VALUES ('train', ?, '1', ?, 60.0, NULL, 0, '[]', '{}', NULL, NULL)",
            (("fit" if k % 2 else f"step-{k % 100}", GB + k) for k in range(100_000)),
        )
    policy = HistoryPolicy(records=history)
    plan = decide(policy)
    assert GB + 99_999 - 800 <= plan.first_limit < 1.1 * GB
    before = len(history.read(KEY, limit=10**6))
    observe(policy, [GB] * 129)
    removed = before + 129 - len(history.read(KEY, limit=10**6))
    assert removed == 2 * 2000, "a part at a time: nobody waits long for the file"


def grown(peak, length, steps=90):
    return [(length * k / steps, int(peak * (k / steps) ** 3) + MI) for k in range(steps + 1)]


def test_long_tasks_that_grow_late_are_started_small(policy):
    for k in range(12):
        peak = 8 * GB + k * 10 * MI
        policy.observe(KEY, Features(), Quantity(peak), 3600.0, curve=grown(peak, 3600.0))
    plan = decide(policy)
    assert plan.in_place is not None
    assert plan.in_place.start < plan.first_limit
    assert decide(policy, caps=Caps(node=q("4Gi"))).in_place.ceiling == q("4Gi")


def test_short_tasks_and_flat_tasks_are_not_grown_in_place():
    for length, curve in ((60.0, grown(8 * GB, 60.0)), (3600.0, [(0.0, 8 * GB), (3600.0, 8 * GB)])):
        policy = HistoryPolicy(records=InMemoryHistory())
        for _ in range(12):
            policy.observe(KEY, Features(), Quantity(8 * GB), length, curve=curve)
        assert decide(policy).in_place is None


def test_core_offers_its_policies_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("MLOPS_EXT_MEMORY_HISTORY", str(tmp_path / "h.sqlite"))
    monkeypatch.setenv("MLOPS_EXT_MEMORY_KILL_PRICE", "1.5")
    policies = mlops_ext_memory_policies()
    assert set(policies) == {"fixed", "double", "history"}
    assert policies["history"].settings.kill_price == 1.5
    for policy in policies.values():
        policy.observe(KEY, Features(), Quantity(GB), 60.0)
        assert policy.decide(KEY, Features(), q("2Gi"), Caps()).reason
    assert (tmp_path / "h.sqlite").exists()
    assert policies["history"].decide(KEY, Features(), q("2Gi"), Caps()).first_limit < 1.5 * GB


@pytest.mark.parametrize("size", [2**62 + 1, 2**63 - 4096, 2**63 - 1])
@pytest.mark.parametrize("censored", [False, True])
def test_sizes_near_the_largest_quantity_fail_no_task(tmp_path, size, censored):
    """A cgroup without a limit reports 2**63 bytes less a page."""
    policy = HistoryPolicy(records=History(tmp_path / "history.sqlite"))
    key, huge = TaskKey(pipeline="p", step="s"), Quantity(size)
    for number in range(6):
        features = Features(input_bytes=1e9 * (number + 1))
        policy.observe(key, features, huge, 3.0, censored=censored)
    plan = policy.decide(key, Features(input_bytes=1e9), None, Caps())
    assert plan.reason == "First run: no request is set, so no limit."
    largest = Attempt(memory=Quantity(2**63 - 1))
    assert isinstance(policy.on_failure(plan, largest, Evidence(oom_killed=True)), Fail)
    retry = policy.on_failure(plan, Attempt(memory=huge), Evidence(oom_killed=True))
    assert isinstance(retry, Fail) == (huge == 2**63 - 1)


def test_growing_in_place_ends_at_the_largest_quantity():
    grow = InPlace(start=Quantity(2**30), threshold=0.5, growth=2.0)
    assert grow.next_limit(Quantity(2**62), 2**62) == 2**63 - 1


def leak(policy, key=KEY, bounds=(4, 8, 16, 32, 64)):
    for gib in bounds:
        policy.observe(key, Features(), Quantity(gib * 2**30), 600.0, censored=True)


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_first_run_that_leaks_sets_the_price_of_hardly_any_later_one(policy, version):
    leak(policy)
    key = TaskKey(pipeline="train", step="fit", version=version)
    firsts = []
    for _ in range(30):
        firsts.append(decide(policy, key=key, request="4Gi").first_limit)
        policy.observe(key, Features(), Quantity(2**30), 600.0)
    assert sum(first > 2 * 2**30 for first in firsts) <= 3
    assert max(firsts[5:]) < 1.2 * 2**30


def test_repaired_code_starts_with_the_request_and_code_that_was_killed_with_more(policy):
    leak(policy)
    repaired = TaskKey(pipeline="train", step="fit", version="2")
    assert decide(policy, key=repaired, request="4Gi").ladder == (q("4Gi"), q("128Gi"))
    assert decide(policy, request="4Gi").ladder == (q("128Gi"),)
    assert decide(policy, key=repaired, request=None).ladder == (q("128Gi"),)


def test_the_attempts_of_one_run_are_one_observation(policy):
    observe(policy, [2**30 + k * MI for k in range(30)])
    leak(policy, bounds=(4,))
    once = decide(policy)
    leak(policy, bounds=(4, 8, 16, 32, 64))
    chain = decide(policy)
    assert chain.first_limit == once.first_limit < 1.2 * 2**30
    assert "another was killed at 64Gi" in chain.reason


def test_a_kill_that_the_runs_own_success_explains_is_forgotten(policy):
    observe(policy, [2**30 + k * MI for k in range(30)])
    leak(policy, bounds=(4, 8))
    policy.observe(KEY, Features(), Quantity(9 * 2**30), 600.0)
    assert "killed" not in decide(policy).reason


def test_a_kill_at_more_input_says_little_of_less_input(policy):
    rng = random.Random(3)
    sizes = [rng.uniform(1, 2) * GB for _ in range(40)]
    observe(policy, [2 * size for size in sizes], sizes=sizes)
    policy.observe(KEY, Features(input_bytes=50 * GB), q("90Gi"), 600.0, censored=True)
    assert decide(policy, size=GB).first_limit < 2.2 * GB


@pytest.mark.parametrize("smoke_runs", [1, 2, 3, 4])
def test_after_smoke_runs_the_request_comes_second(policy, smoke_runs):
    observe(policy, [300 * MI] * smoke_runs)
    plan = decide(policy, request="16Gi")
    assert plan.ladder[:2] == (plan.first_limit, q("16Gi"))
    assert plan.first_limit < q("1Gi")
    assert ", then 16Gi as you requested, then " in plan.reason
    kills, _ = kills_and_firsts(policy, [12 * GB])
    assert kills == [1]


@pytest.mark.parametrize("smoke_runs", [5, 10, 29])
def test_while_few_runs_are_known_what_none_has_needed_leads_to_the_request(policy, smoke_runs):
    rng = random.Random(smoke_runs)
    observe(policy, [300 * MI * rng.uniform(0.95, 1) for _ in range(smoke_runs)], runtime_s=60.0)
    plan = decide(policy, request="16Gi")
    assert plan.ladder[-2:] == (plan.first_limit, q("16Gi"))
    assert "16Gi as you requested" in plan.reason
    assert kills_and_firsts(policy, [12 * GB])[0] == [1]


def test_what_outgrows_runs_that_differ_is_found_by_growing_not_by_the_request(policy):
    observe(policy, [300 * MI * (1 + k) for k in range(10)])
    assert q("64Gi") not in decide(policy).ladder


def test_with_runs_enough_the_request_is_overridden_and_the_reason_says_so(policy):
    observe(policy, [300 * MI] * 30)
    plan = decide(policy, request="16Gi")
    assert q("16Gi") not in plan.ladder
    assert plan.reason.endswith("then 2 times as much each time. You requested 16Gi.")


@pytest.mark.parametrize("runtime_s", [0.0, float("nan"), 600.0])
def test_the_input_counts_also_where_no_run_time_is_known(policy, runtime_s):
    rng = random.Random(0)
    sizes = [rng.choice([1, 8]) * GB * rng.uniform(0.99, 1.01) for _ in range(40)]
    observe(policy, sizes, sizes=sizes, runtime_s=runtime_s)
    assert decide(policy, size=GB, request="16Gi").ladder[-1] < 2 * GB


def test_luck_does_not_make_the_last_few_runs_lead():
    """Independent runs of 1 or 8 GiB: not far from the plain ladder of the two."""
    wasted, plain, runs = 0.0, 0.0, 0
    for seed in range(3):
        rng = random.Random(seed)
        peaks = [
            (8 if rng.random() < 0.2 else 1) * 2**30 * rng.uniform(0.95, 1) for _ in range(100)
        ]
        policy = HistoryPolicy(
            records=InMemoryHistory(), settings=MemorySettings(prefer="less-waste")
        )
        for number, peak in enumerate(peaks):
            plan = decide(policy, request="16Gi")
            memory, failed = plan.first_limit, 0
            while memory < peak:
                failed += memory
                memory = policy.on_failure(plan, Attempt(memory=memory), OOM).memory
            observe(policy, [peak])
            if number >= 20:
                runs += 1
                wasted += failed + memory - peak
                plain += 2**30 + 8 * 2**30 - peak if peak > 2**30 else 2**30 - peak
    assert wasted < 2.5 * plain


def test_a_step_with_a_budget_of_its_own_has_a_ladder_of_its_own(policy):
    observe(policy, [GB * 1.3**k for k in range(20)])
    settings = MemorySettings(kill_price=0.0, restart_s=0.0, time_to_failure=0.01)
    cheap = HistoryPolicy(records=policy.records, settings=settings)
    assert len(decide(cheap.with_budget(oom_retries=2, retry_memory_error=False)).ladder) <= 2
    assert len(decide(cheap).ladder) > 2


@pytest.mark.parametrize(
    ("settings", "price"),
    [
        (MemorySettings(), 3.0),
        (MemorySettings(prefer="fewer-kills"), 16.0),
        (MemorySettings(prefer="less-waste"), 1.0),
        (MemorySettings(prefer="less-waste", kill_price=7.0), 7.0),
    ],
)
def test_what_is_preferred_is_a_price_of_kills(settings, price):
    assert settings.price_of_kill == price


def test_records_that_raise_fail_no_task(caplog):
    class Broken:
        def append(self, key, observation):
            raise KeyError("broken")

        def read(self, key, *, after=0, limit=400):
            raise KeyError("broken")

    policy = HistoryPolicy(records=Broken())
    assert decide(policy, request="3Gi").ladder == (q("3Gi"),)
    observe(policy, [GB])
    assert caplog.text.count("broken") == 2


def steep(peak, at_s, length=3600.0):
    """Memory that climbs from a tenth of *peak* to all of it within two minutes."""
    return [
        (0.0, int(peak / 10)),
        *((at_s + 120.0 * k / 30, int(peak * (0.1 + 0.9 * k / 30))) for k in range(31)),
        (length, int(peak)),
    ]


def test_what_is_grown_leaves_the_time_that_resizes_take(policy):
    """A climb that resizes of a second keep up with, and those of two minutes cannot."""
    quick, slow = policy, HistoryPolicy(records=InMemoryHistory())
    for at, resizes_s in ((quick, (1.0, 1.0)), (slow, (120.0, 120.0))):
        for _ in range(24):
            curve = steep(8 * GB, 3000.0)
            at.observe(KEY, Features(), Quantity(8 * GB), 3600.0, curve=curve, resizes_s=resizes_s)
    in_place, later = decide(quick).in_place, decide(slow).in_place
    assert in_place is not None
    assert in_place.start < 5 * GB
    assert later is None or later.start * later.growth >= 7 * GB


def test_where_resizes_never_take_effect_nothing_is_grown(policy):
    for k in range(12):
        curve = grown(8 * GB + k * MI, 3600.0)
        peak = Quantity(8 * GB + k * MI)
        policy.observe(KEY, Features(), peak, 3600.0, curve=curve, resizes_s=(math.inf,))
    assert decide(policy).in_place is None


def test_how_long_resizes_take_is_learnt_from_all_tasks(policy):
    other = TaskKey(pipeline="train", step="other")
    for k in range(12):
        peak = Quantity(8 * GB + k * MI)
        policy.observe(KEY, Features(), peak, 3600.0, curve=grown(peak, 3600.0))
    assert decide(policy).in_place is not None
    policy.observe(other, Features(), Quantity(GB), 600.0, resizes_s=(math.inf,) * 3)
    assert "1 earlier run" in decide(policy, key=other).reason
    assert decide(policy).in_place is None


def test_the_plan_that_was_in_force_is_what_a_start_is_a_fraction_of(policy):
    plan = MemoryPlan(ladder=(q("20Gi"),), reason="")
    policy.observe(KEY, Features(), Quantity(GB), 60.0, plan=plan)
    ((_, run),) = policy.records.read(KEY)
    assert run.first_limit == q("20Gi")


def test_the_reason_says_that_it_grows(policy):
    for k in range(12):
        peak = Quantity(8 * GB + k * 10 * MI)
        policy.observe(KEY, Features(), peak, 3600.0, curve=grown(peak, 3600.0))
    plan = decide(policy)
    assert f"It starts with {plan.in_place.start.human} and grows as it needs more" in plan.reason


def test_the_runs_of_a_step_that_occurs_again_count_for_each_occurrence(policy):
    """ZenML numbers them: train, train_2, train_3."""
    again = TaskKey(pipeline="train", step="fit_2", version="1")
    other = TaskKey(pipeline="train", step="fitting", version="1")
    observe(policy, [GB] * 6)
    assert decide(policy, key=again).reason.startswith("6 earlier runs")
    assert "First run" in decide(policy, key=other).reason
    observe(policy, [GB], key=again)
    assert decide(policy).reason.startswith("7 earlier runs")


def test_an_occurrence_with_runs_enough_goes_its_own_way(policy):
    first, second = (TaskKey(pipeline="p", step=f"model_{k}", version="1") for k in (1, 2))
    for _ in range(10):
        observe(policy, [GB], key=first)
        observe(policy, [8 * GB], key=second)
    assert decide(policy, key=first, request=None).ladder[-1] < 2 * GB
    assert decide(policy, key=second).first_limit >= 8 * GB


@pytest.mark.parametrize("step", ["_2", "fit_", "fit_two", "fit2", "2"])
def test_a_name_that_only_looks_numbered_has_a_history_of_its_own(policy, step):
    observe(policy, [GB] * 3, key=TaskKey(pipeline="p", step=step))
    for name in ("fit", "_", ""):
        assert "First run" in decide(policy, key=TaskKey(pipeline="p", step=name)).reason
    assert "3 earlier runs" in decide(policy, key=TaskKey(pipeline="p", step=step)).reason


def test_what_was_kept_is_the_same_whatever_the_writer_preferred():
    """A reader weighs it at its own price: outcomes are kept for each price that has a name."""
    rng = random.Random(3)
    peaks = [rng.lognormvariate(0, 0.6) * GB for _ in range(40)]
    kept, plans = [], []
    for writer in ("less-waste", "fewer-kills"):
        records = InMemoryHistory()
        observe(HistoryPolicy(records=records, settings=MemorySettings(prefer=writer)), peaks)
        kept.append([run.outcomes for _, run in records.read(KEY)])
        plans.append(decide(HistoryPolicy(records=records)))
    assert kept[0] == kept[1]
    assert plans[0].ladder == plans[1].ladder


class Hostile:
    """Whatever is asked of it raises."""

    def _refuse(self, *args):
        raise RuntimeError("hostile")

    __float__ = __int__ = __str__ = __repr__ = __bool__ = __eq__ = _refuse
    __hash__ = None


NONSENSE = [
    *(None, True, 0, -1, 10**400, -(10**400), 2**62, 2**80, "", "5", "5Gi", "\udcff", b"5"),
    *(math.nan, math.inf, -math.inf, 1e300, -1e300, 5e-324, 1j, [], [1], {"a": 1}, (1, 2)),
    *(decimal.Decimal(text) for text in ("5", "NaN", "sNaN", "Infinity", "1e500")),
    *(fractions.Fraction(1, 3), object(), Hostile(), Hostile),
]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_whatever_an_orchestrator_says_fails_no_task_and_spoils_no_history(tmp_path, kind):
    numpy = pytest.importorskip("numpy")
    records = InMemoryHistory() if kind == "memory" else History(tmp_path / "h.sqlite")
    policy = HistoryPolicy(records=records)
    observe(policy, [GB + k * MI for k in range(8)])
    odd = [numpy.float64("nan"), numpy.uint64(2**63 + 5), numpy.array([1.0, 2.0]), numpy.array(7)]
    for value in [*NONSENSE, *odd]:
        for part in ("pipeline", "step", "version"):
            named = {"pipeline": "a", "step": "b", part: value}
            policy.decide(TaskKey(**named), Features(), q("2Gi"), Caps())
            policy.observe(TaskKey(**named), Features(), Quantity(GB), 60.0)
        for key, features, request, caps in (
            (value, Features(), q("2Gi"), Caps()),
            (KEY, value, q("2Gi"), Caps()),
            (KEY, Features(input_bytes=value), q("2Gi"), Caps()),
            (KEY, Features(), value, Caps()),
            (KEY, Features(), q("2Gi"), value),
            *((KEY, Features(), q("2Gi"), Caps(**{name: value})) for name in ("node", "quota")),
        ):
            assert policy.decide(key, features, request, caps).reason
        policy.observe(value, Features(), Quantity(GB), 60.0)
        policy.observe(KEY, value, Quantity(GB), 60.0)
        for run in (
            {"peak": value},
            {"runtime_s": value},
            {"censored": value},
            {"curve": value},
            {"curve": [(0, 1), (value, value)]},
            {"plan": value},
            {"resizes_s": value},
            {"resizes_s": [value]},
        ):
            known = {"peak": Quantity(GB), "runtime_s": 60.0, **run}
            policy.observe(KEY, Features(input_bytes=value), known.pop("peak"), **known)
    plan = decide(policy, request="1Ti")
    assert "earlier runs" in plan.reason
    assert plan.ladder[-1] < 1.2 * GB, "peaks that no machine has count for nothing"


@pytest.mark.parametrize("value", [True, "5", "1Gi", b"5", None, [5], decimal.Decimal("NaN")])
def test_an_input_size_that_is_no_number_counts_as_not_known(value):
    assert Features(input_bytes=value).known_input is None


def test_numbers_of_other_types_are_input_sizes():
    numpy = pytest.importorskip("numpy")
    for value in (5, decimal.Decimal(5), fractions.Fraction(5), numpy.int64(5), numpy.float32(5)):
        assert Features(input_bytes=value).known_input == 5.0


def test_one_damaged_peak_spoils_nothing(policy):
    """Within what a machine may have, but a thousand times all others."""
    observe(policy, [GB, GB + MI, 2**45, GB + 2 * MI])
    observe(policy, [GB + k * MI for k in range(6)])
    plan = decide(policy, request=None)
    assert plan.ladder[-1] < 1.3 * GB
    assert plan.reason.startswith("9 earlier runs peaked between 954Mi and 959Mi")


def test_a_need_that_rose_a_thousandfold_is_believed_when_it_is_there_twice(policy):
    observe(policy, [10 * MI] * 6)
    kills, firsts = kills_and_firsts(policy, [20 * GB] * 4)
    assert kills[0] == 1
    assert firsts[-1] >= 20 * GB
