"""What is recorded of attempts, what is computed from it, and where requests come from."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_ext.memory import Caps, Features, MemoryPlan, Quantity
from zenml_ext.memory import history, policy
from zenml_ext.memory.attempts import AttemptRecord
from zenml_ext.memory.report import StepMemory, settings_to_paste, waste
from zenml_ext.settings import OomSettings

sizes = st.none() | st.integers(0, 2**40).map(Quantity)
seconds = st.integers(0, 10**6).map(lambda ms: ms / 1000)
records = st.builds(
    AttemptRecord,
    number=st.integers(1, 30),
    memory=sizes,
    peak=sizes,
    outcome=st.sampled_from(["completed", "killed for memory", "failed"]),
    reason=st.text(max_size=20),
    node=st.text(max_size=10),
    runtime_s=seconds,
    lost_s=seconds,
)


@given(records)
def test_an_attempt_survives_its_way_through_the_metadata(attempt):
    assert AttemptRecord.load(attempt.dump()) == attempt


@pytest.mark.parametrize("found", [{}, {"number": "x"}, [], None, {"number": 1}])
def test_foreign_metadata_is_refused(found):
    with pytest.raises(ValueError):
        AttemptRecord.load(found)


GB = Quantity(10**9)


def attempt(outcome, memory, peak, runtime_s):
    return AttemptRecord(number=1, memory=memory, peak=peak, outcome=outcome, runtime_s=runtime_s)


def test_waste_is_all_of_a_lost_attempt_and_what_a_good_one_left_unused():
    lost = attempt("killed for memory", GB, GB, 1800)
    good = attempt("completed", Quantity(3 * GB), Quantity(2 * GB), 3600)
    unlimited = attempt("completed", None, GB, 3600)
    assert waste([lost]) == pytest.approx(0.5)
    assert waste([good]) == pytest.approx(1.0)
    assert waste([lost, good, unlimited]) == pytest.approx(1.5)


def test_suggestions_take_the_policys_first_rung_else_the_peak_and_a_tenth():
    good = attempt("completed", None, Quantity.parse("1000Mi"), 1)
    plan = MemoryPlan(ladder=(Quantity.parse("1200Mi"),), reason="")
    steps = [
        StepMemory(run="r", step="planned", attempts=[good], following=plan),
        StepMemory(run="r", step="seen", attempts=[good]),
        StepMemory(run="r", step="unknown", attempts=[attempt("completed", None, None, 1)]),
    ]
    text = settings_to_paste(steps)
    assert "  planned:\n    settings:\n      orchestrator:\n        memory: 1200Mi" in text
    assert "  seen:\n    settings:\n      orchestrator:\n        memory: 1100Mi" in text
    assert "unknown" not in text


def step_with(memory):
    config = pytest.importorskip("zenml.config.resource_settings")
    resources = config.ResourceSettings(memory=memory)
    return SimpleNamespace(config=SimpleNamespace(resource_settings=resources))


def test_the_request_is_the_setting_else_zenmls_own_resources():
    assert policy.request_of(OomSettings(memory="600Mi"), step_with("1GB")) == 600 * 1024**2
    assert policy.request_of(OomSettings(), step_with("1GB")) == 10**9
    assert policy.request_of(OomSettings(), step_with("1GiB")) == 1024**3
    assert policy.request_of(OomSettings(), step_with("4000KB")) == 4 * 10**6
    assert policy.request_of(OomSettings(), step_with("4KiB")) == 4096
    assert policy.request_of(OomSettings(), step_with(None)) is None


def facts_of(settings, memory=None, **more):
    config = SimpleNamespace(
        name="train",
        caching_parameters={"code_hash": "v1"},
        resource_settings=SimpleNamespace(memory=memory),
    )
    step = SimpleNamespace(spec=SimpleNamespace(invocation_id="train_2", inputs={}), config=config)
    return policy.StepFacts(name="train_2", pipeline="p", step=step, settings=settings, **more)


def test_a_step_without_a_request_can_be_left_alone():
    def ladder(memory=None, **more):
        facts = facts_of(
            OomSettings(when_no_memory="leave", memory_policy="double"), memory, **more
        )
        return facts.plan(facts.policy, Features(), Caps()).ladder

    assert ladder() == ()
    assert ladder("1GB") == (GB,)
    assert ladder("1GB", is_elsewhere=True) == ()  # it waits for its step operator


@pytest.mark.parametrize("name", ["fixed", "double", "history"])
def test_each_policy_gets_the_steps_own_budget_and_the_shared_one_keeps_its(
    name, tmp_path, monkeypatch
):
    monkeypatch.setenv("MLOPS_EXT_MEMORY_HISTORY", str(tmp_path / "h.sqlite"))
    chosen = policy.policy_for(
        OomSettings(memory_policy=name, oom_retries=7, retry_memory_error=True)
    )
    assert chosen.settings.max_oom_retries == 7
    assert chosen.settings.retry_memory_error
    other = policy.policy_for(OomSettings(memory_policy=name))
    assert other.settings.max_oom_retries == 4
    assert not other.settings.retry_memory_error


def test_on_kubernetes_a_step_that_was_killed_before_starts_above_its_last_limit(
    tmp_path, monkeypatch
):
    pytest.importorskip("numpy")
    monkeypatch.setenv("MLOPS_EXT_MEMORY_HISTORY", str(tmp_path / "h.sqlite"))
    facts = facts_of(OomSettings(memory_policy="history"), "500MiB")
    killed = AttemptRecord(
        number=1,
        memory=GB,
        peak=GB,
        outcome="killed for memory",
        runtime_s=9,
        lost_s=9,
        version="v1",
    )
    monkeypatch.setattr(history, "past_attempts", lambda facts: [])
    assert history.plan_from_server(facts, Features()).first_limit == Quantity.parse("500Mi")
    monkeypatch.setattr(history, "past_attempts", lambda facts: [killed])
    plan = history.plan_from_server(facts, Features())
    assert 2 * GB <= plan.first_limit < 2.01 * GB
    assert "Killed at" in plan.reason


def test_on_kubernetes_each_past_peak_is_told_once_with_its_own_input_and_version(
    tmp_path, monkeypatch
):
    pytest.importorskip("numpy")
    shared = tmp_path / "h.sqlite"
    monkeypatch.setenv("MLOPS_EXT_MEMORY_HISTORY", str(shared))
    facts = facts_of(OomSettings(memory="2Gi", memory_policy="history"))

    def row(number, is_foreign):
        """A run whose peak is half its input, and a third of a GB; much more in another pipeline."""
        size = (1, 2, 4, 8)[number % 4]
        peak = Quantity(int(size * 0.5 * GB + GB / 3 + number * 1000) * (9 if is_foreign else 1))
        attempt = AttemptRecord(
            number=1,
            memory=Quantity(8 * GB),
            peak=peak,
            outcome="completed",
            runtime_s=600,
            input_bytes=size * GB,
            version="v1",
        )
        return SimpleNamespace(
            name="train",
            config=facts.step.config,
            pipeline_run_id="foreign" if is_foreign else "ours",
            run_metadata={"memory_attempts": [attempt.dump()]},
        )

    asked = []

    class Client:
        def list_run_steps(self, **filters):
            asked.append(filters["name"])
            rows = [row(number, is_foreign=number >= 30) for number in range(40)]
            return SimpleNamespace(items=rows)

        def list_pipeline_runs(self, **filters):
            assert filters["pipeline_name"] == "p"
            return SimpleNamespace(items=[SimpleNamespace(id="ours")])

    monkeypatch.setattr("zenml.client.Client", Client)
    small, large, again = (
        history.plan_from_server(facts, Features(input_bytes=size * GB)).first_limit
        for size in (1, 8, 1)
    )
    assert small == again  # nothing was told twice
    assert 0.8 * GB < small < 1.3 * GB
    assert 4.3 * GB < large < 6 * GB
    assert not shared.exists()
    assert set(asked) == {"contains:train"}  # invocations of a function share a history


def test_the_name_of_a_mapped_step_fits_into_zenmls_metadata(monkeypatch):
    """ZenML refuses keys with a colon, and calls the steps of a map so."""
    from zenml_ext.memory import records as written

    keys = []
    monkeypatch.setattr(written, "_write", lambda values, *_: keys.extend(values))
    written.record_on_run(None, "map:train:0", [attempt("completed", GB, GB, 1)])
    assert keys == ["memory_attempts.map.train.0"]


def test_every_attempt_has_what_a_reader_asks_for_whether_there_is_anything_to_say_or_not():
    found = AttemptRecord(number=1, memory=None, peak=None, outcome="completed").dump()
    assert {"number", "memory", "peak", "outcome", "reason", "runtime_s"} <= set(found)


@pytest.mark.parametrize("name", ["history", "double", "fixed"])
def test_a_first_plan_knows_what_the_user_asked_for(name):
    """What no node can run is tried with less only if the user asked for less."""
    settings = OomSettings(memory="900Gi", memory_policy=name)
    config = SimpleNamespace(name="s", caching_parameters={})
    step = SimpleNamespace(config=config, spec=SimpleNamespace(invocation_id="s"))
    config.resource_settings = SimpleNamespace(memory=None)
    facts = policy.StepFacts(name="s", pipeline="p", step=step, settings=settings)
    plan = facts.plan(facts.policy, Features(), Caps())
    assert plan.request == Quantity.parse("900Gi")
