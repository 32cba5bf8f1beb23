"""What follows a failed attempt, with the policies that need no history."""

import json
import pickle
from dataclasses import fields

import pytest

from mlops_ext.codec import decode, encode
from mlops_ext.memory import (
    Attempt,
    Cap,
    Caps,
    Cause,
    Evidence,
    Fail,
    Features,
    InPlace,
    MemoryPlan,
    MemorySettings,
    Quantity,
    RequestPolicy,
    Retry,
    RetryElsewhere,
    TaskKey,
    escalate,
)

KEY = TaskKey(pipeline="train", step="fit")
OOM = Evidence(oom_killed=True, exit_code=137)
FIXED = RequestPolicy(settings=MemorySettings(growth=1.0))


def q(text):
    return Quantity.parse(text)


def plan_of(policy, request="1Gi", **caps):
    named = {name: q(value) if name != "node_name" else value for name, value in caps.items()}
    wanted = q(request) if request is not None else None
    return policy.decide(KEY, Features(), wanted, Caps(**named))


def attempts(policy, plan, evidence=OOM):
    """Every allocation a task gets that is always killed, and the last decision."""
    memory, given = plan.first_limit, []
    for retries in range(20):
        given.append(memory)
        attempt = Attempt(memory=memory, oom_retries=retries)
        decision = policy.on_failure(plan, attempt, evidence)
        if not isinstance(decision, Retry):
            return given, decision
        memory = decision.memory
    raise AssertionError("retries have no end")


def test_double_gives_the_request_then_doubles_for_four_retries():
    given, last = attempts(RequestPolicy(), plan_of(RequestPolicy()))
    assert given == [q(size) for size in ("1Gi", "2Gi", "4Gi", "8Gi", "16Gi")]
    assert isinstance(last, Fail)
    assert "5 times" in last.reason
    assert "max_oom_retries" in last.reason


def test_double_stops_at_the_cap_and_names_what_binds():
    plan = plan_of(RequestPolicy(), node="64Gi", limit_range="3Gi", quota="10Gi")
    given, last = attempts(RequestPolicy(), plan)
    assert given == [q("1Gi"), q("2Gi"), q("3Gi")]
    assert last.cause is Cause.OUT_OF_MEMORY
    assert "LimitRange" in last.reason
    assert "3Gi" in last.reason


def test_a_node_that_binds_is_named_with_its_size():
    plan = plan_of(RequestPolicy(), request="8Gi", node="7Gi", node_name="worker-3")
    assert plan.first_limit == q("7Gi")
    assert "worker-3" in plan.reason
    assert "8Gi was asked for" in plan.reason
    given, last = attempts(RequestPolicy(), plan)
    assert given == [q("7Gi")]
    assert "worker-3" in last.reason


def test_fixed_never_gives_more():
    given, last = attempts(FIXED, plan_of(FIXED))
    assert given == [q("1Gi")]
    assert "this policy never gives more" in last.reason


def test_no_request_means_no_limit_unless_a_first_size_is_set():
    assert plan_of(RequestPolicy(), request=None).first_limit is None
    assert plan_of(RequestPolicy(), request="0").first_limit is None
    settings = MemorySettings(first_limit=q("2Gi"))
    assert plan_of(RequestPolicy(settings=settings), request=None).first_limit == q("2Gi")


def test_a_kill_without_a_limit_is_answered_with_a_limit():
    policy = RequestPolicy()
    plan = plan_of(policy, request=None, node="6Gi")
    seen = policy.on_failure(plan, Attempt(memory=None), Evidence(oom_killed=True, peak=q("2Gi")))
    assert seen.memory == q("2.5Gi")
    unseen = policy.on_failure(plan, Attempt(memory=None), OOM)
    assert unseen.memory == q("1.25Gi")
    huge = policy.on_failure(plan, Attempt(memory=None), Evidence(oom_killed=True, peak=q("9Gi")))
    assert huge.memory == q("6Gi")
    assert isinstance(
        FIXED.on_failure(plan_of(FIXED, None), Attempt(memory=None), OOM),
        Fail,
    )


@pytest.mark.parametrize(
    ("evidence", "cause", "kind"),
    [
        (Evidence(oom_killed=True, exit_code=3), Cause.OUT_OF_MEMORY, Retry),
        (Evidence(oom_killed=True, exit_code=0), Cause.OUT_OF_MEMORY, Retry),
        (Evidence(oom_killed=True, exit_code=0, succeeded=True), Cause.NONE, Fail),
        (Evidence(exit_code=137), Cause.AMBIGUOUS, Fail),
        (Evidence(exit_code=137, peak=Quantity(1000 * 2**20)), Cause.OUT_OF_MEMORY, Retry),
        (Evidence(exit_code=137, peak=Quantity(500 * 2**20)), Cause.AMBIGUOUS, Fail),
        (Evidence(exit_code=1, peak=Quantity(1000 * 2**20)), Cause.OTHER, Fail),
        (Evidence(exit_code=1), Cause.OTHER, Fail),
        (Evidence(exit_code=1, memory_error=True), Cause.MEMORY_ERROR, Fail),
        (Evidence(exit_code=137, disruption="preempted"), Cause.DISRUPTED, RetryElsewhere),
        (Evidence(exit_code=137, storage_evicted=True, disruption="x"), Cause.STORAGE, Fail),
        (Evidence(refused="exceeded quota: team"), Cause.REFUSED, Retry),
    ],
)
def test_evidence_decides(evidence, cause, kind):
    policy = RequestPolicy()
    plan = plan_of(policy)
    decision = policy.on_failure(plan, Attempt(memory=q("1Gi")), evidence)
    assert decision.cause is cause
    assert type(decision) is kind
    assert decision.reason.endswith(".")


def test_memory_errors_count_when_asked_to():
    policy = RequestPolicy(settings=MemorySettings(retry_memory_error=True))
    evidence = Evidence(exit_code=1, memory_error=True)
    assert policy.on_failure(plan_of(policy), Attempt(memory=q("1Gi")), evidence).memory == q("2Gi")


def test_a_disruption_keeps_the_current_rung_and_costs_no_retry():
    policy = RequestPolicy()
    evidence = Evidence(exit_code=137, disruption="TaintManager", node="n1")
    attempt = Attempt(memory=q("4Gi"), oom_retries=4)
    decision = policy.on_failure(plan_of(policy), attempt, evidence)
    assert isinstance(decision, RetryElsewhere)
    assert decision.memory == q("4Gi")
    assert "n1" in decision.reason


def test_a_quota_that_refuses_is_not_an_oom():
    policy = RequestPolicy()
    plan = plan_of(policy, quota="3Gi")
    evidence = Evidence(refused="exceeded quota: team")
    waits = policy.on_failure(plan, Attempt(memory=q("2Gi"), oom_retries=4), evidence)
    assert waits.wait
    assert waits.memory == q("2Gi")
    assert "exceeded quota: team" in waits.reason
    never = policy.on_failure(plan, Attempt(memory=q("4Gi")), evidence)
    assert isinstance(never, Fail)
    assert "ResourceQuota" in never.reason


def test_only_the_killed_container_escalates():
    policy = RequestPolicy()
    evidence = Evidence(oom_killed=True, container="istio-proxy")
    attempt = Attempt(memory=q("1Gi"), container="main")
    decision = policy.on_failure(plan_of(policy), attempt, evidence)
    assert decision.memory == q("1Gi")
    assert "istio-proxy" in decision.reason


def test_the_least_cap_binds():
    caps = Caps(node=q("8Gi"), limit_range=q("4Gi"), quota=q("6Gi"), max_memory=q("5Gi"))
    assert caps.binding == Cap(memory=q("4Gi"), name="the namespace's LimitRange")
    assert Caps().binding is None
    assert Caps(node=Quantity(0)).binding is None


def test_plans_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="rising"):
        MemoryPlan(ladder=(q("2Gi"), q("1Gi")), reason="")
    with pytest.raises(ValueError, match="positive"):
        MemoryPlan(ladder=(Quantity(0),), reason="")
    with pytest.raises(ValueError, match="above the cap"):
        MemoryPlan(ladder=(q("2Gi"),), reason="", cap=Cap(memory=q("1Gi"), name="x"))
    with pytest.raises(ValueError, match="growth"):
        InPlace(start=q("1Gi"), threshold=0.9, growth=1.0)
    with pytest.raises(ValueError, match="threshold"):
        InPlace(start=q("1Gi"), threshold=0.0, growth=2.0)
    with pytest.raises(ValueError, match="growth"):
        MemorySettings(growth=0.9)
    with pytest.raises(ValueError, match="kill_price"):
        MemorySettings(kill_price=float("nan"))


def test_in_place_grows_past_the_usage_and_not_past_its_ceiling():
    plan = InPlace(start=q("1Gi"), threshold=0.8, growth=1.5, ceiling=q("4Gi"))
    assert plan.next_limit(q("1Gi"), q("700Mi")) is None
    grown = plan.next_limit(q("1Gi"), q("900Mi"))
    assert q("1.5Gi") <= grown <= q("1.51Gi")
    assert plan.next_limit(q("1Gi"), q("20Gi")) == q("4Gi")
    assert plan.next_limit(q("4Gi"), q("4Gi")) is None


def test_a_plan_can_be_kept_between_processes():
    plan = plan_of(RequestPolicy(), node="3Gi")
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_unusable_input_sizes_count_as_unknown():
    for size in (0, -5, float("nan"), float("inf"), None):
        assert Features(input_bytes=size).known_input is None
    assert Features(input_bytes=10**12).known_input == 1e12


def test_the_last_retry_gets_the_request_and_never_more_than_the_cap():
    gib = 2**30
    cap = Cap(memory=Quantity(4 * gib), name="the setting max_memory")
    for limit, expected in ((cap, 4 * gib), (None, 8 * gib)):
        plan = MemoryPlan(ladder=(Quantity(gib),), reason="", cap=limit, request=Quantity(8 * gib))
        last = Attempt(memory=Quantity(gib), oom_retries=3)
        decision = escalate(plan, last, Evidence(oom_killed=True), MemorySettings())
        assert decision.memory == expected


@pytest.mark.parametrize("growth", [0.5, 0, float("inf"), float("nan")])
def test_a_growth_that_would_give_less_is_refused(growth):
    with pytest.raises(ValueError, match=r"memory\.growth"):
        MemorySettings(growth=growth)
    with pytest.raises(ValueError, match=r"MemoryPlan\.growth"):
        MemoryPlan(ladder=(), reason="", growth=growth)


def test_a_step_has_its_own_budget_and_the_policy_keeps_its():
    shared = RequestPolicy(settings=MemorySettings(retry_memory_error=True))
    own = shared.with_budget(oom_retries=7, retry_memory_error=False)
    assert own.settings.max_oom_retries == 7
    assert own.settings.retry_memory_error, "what the settings say for all steps stays"
    assert shared.settings.max_oom_retries == 4
    assert not own.learns


FULL = MemoryPlan(
    ladder=(q("1Gi"), q("3Gi")),
    reason="why",
    in_place=InPlace(start=q("512Mi"), threshold=0.9, growth=1.5, ceiling=q("9Gi")),
    cap=Cap(memory=q("8Gi"), name="the largest node"),
    growth=3,
    request=q("4Gi"),
)


@pytest.mark.parametrize("plan", [FULL, MemoryPlan(ladder=(), reason="")])
def test_a_plan_comes_back_whole_from_json(plan):
    defaults = MemoryPlan(ladder=(), reason="")
    forgotten = {f.name for f in fields(plan) if getattr(FULL, f.name) == getattr(defaults, f.name)}
    assert not forgotten, "FULL is to show every field"
    assert decode(MemoryPlan, json.loads(json.dumps(encode(plan)))) == plan


def test_the_last_retry_gets_the_request_also_after_the_plan_went_through_json():
    plan = MemoryPlan(ladder=(q("90Mi"), q("180Mi")), reason="", request=q("4Gi"))
    plan = decode(MemoryPlan, json.loads(json.dumps(encode(plan)))).capped(Caps(node=q("60Gi")))
    decision = escalate(plan, Attempt(memory=q("180Mi"), oom_retries=3), OOM, MemorySettings())
    assert decision.memory == q("4Gi")


def test_caps_that_come_later_lower_every_allocation():
    plan = MemoryPlan(ladder=(q("1Gi"), q("3Gi"), q("9Gi")), reason="why", request=q("9Gi"))
    assert plan.capped(Caps()) is plan
    capped = plan.capped(Caps(node=q("2Gi"), max_memory=q("4Gi")))
    assert capped.ladder == (q("1Gi"), q("2Gi"))
    assert capped.cap == Cap(memory=q("2Gi"), name="the largest node")
    assert (capped.request, capped.reason) == (plan.request, plan.reason)
    assert capped.capped(Caps(node=q("3Gi"))) == capped, "the lower cap stays"
