"""Every order of events of a shutdown, on a fake clock."""

import dataclasses
import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from mlops_ext.shutdown import (
    Limits,
    Phase,
    Shutdown,
    Signal,
    Started,
    Step,
    Stopped,
    Tick,
)

ORDER = list(Step)
PHASES = list(Phase)
seconds = st.floats(0, 10, allow_nan=False)
limits = st.builds(
    Limits,
    lame_duck_s=seconds, drain_s=seconds, refuse_s=seconds,
    stop_s=seconds, abort_s=seconds, echo_s=st.floats(0, 1), pair_s=st.floats(0, 2),
)  # fmt: skip
gaps = st.one_of(st.just(0.0), st.floats(0, 0.2), st.floats(-1, 8))
events = st.one_of(
    st.builds(lambda: Started(at=0)),
    st.builds(
        lambda n, d, limit, insists: Signal(
            at=0, number=n, lame_duck=d, limit_s=limit, insists=insists
        ),
        st.sampled_from([0, 1, 2, 3, 15]), st.booleans(), st.one_of(st.none(), seconds),
        st.booleans(),
    ),
    st.builds(lambda n: Tick(at=0, in_flight=n), st.integers(0, 3)),
    st.builds(lambda: Stopped(at=0)),
)  # fmt: skip
histories = st.lists(st.tuples(gaps, events), max_size=30)


def play(limits, history):
    """Yield (time, event, state before, answer) along *history*."""
    state, now = Shutdown(limits=limits), 100.0
    for gap, event in history:
        now += gap
        timed = dataclasses.replace(event, at=now)
        moved = state.on(timed)
        yield timed, state, moved
        state = moved.state


@given(limits, histories)
def test_steps_come_in_order_each_once_and_none_after_the_end(limits, history):
    given_steps = [step for *_, moved in play(limits, history) for step in moved.steps]
    positions = [ORDER.index(step) for step in given_steps]
    assert positions == sorted(set(positions))
    assert not {Step.LEAVE, Step.KILL} <= set(given_steps)


@given(limits, histories)
def test_no_step_and_no_deadline_without_a_signal(limits, history):
    quiet = [(gap, event) for gap, event in history if not isinstance(event, Signal)]
    for _, _, moved in play(limits, quiet):
        assert moved.steps == ()
        assert moved.state.wake_at == math.inf
        assert not moved.state.ending


@given(limits, histories)
def test_phases_are_never_left_backwards(limits, history):
    for _, before, moved in play(limits, history):
        assert PHASES.index(moved.state.phase) >= PHASES.index(before.phase)


@given(limits, histories)
def test_stop_waits_for_requests_in_flight_or_their_refusal(limits, history):
    for event, before, moved in play(limits, history):
        if Step.STOP in moved.steps and before.phase is not Phase.STARTING:
            assert isinstance(event, Tick)
            assert event.in_flight == 0 or moved.state.refused


@given(limits, histories)
def test_accepting_ends_only_after_the_lame_duck(limits, history):
    signals = []
    for event, before, moved in play(limits, history):
        if isinstance(event, Signal):
            signals.append(event)
        if Step.CLOSE in moved.steps and before.phase is not Phase.STARTING:
            hurried = not signals[0].lame_duck or any(s.limit_s is not None for s in signals)
            assert hurried or moved.state.now >= before.began_at + limits.lame_duck_s


@given(limits, histories)
def test_a_second_signal_ends_at_once_with_its_status_and_an_echo_does_not(limits, history):
    for event, before, moved in play(limits, history):
        if not isinstance(event, Signal) or not before.ending or before.phase is Phase.ENDED:
            continue
        same = event.number == before.signal
        echo = moved.state.now - before.began_at <= (limits.echo_s if same else limits.pair_s)
        harmless = (
            echo or event.number == 0 or before.signal == 0 or event.limit_s is not None
            or not event.insists
        )  # fmt: skip
        assert (moved.steps == ()) if harmless else (moved.steps == (Step.KILL,))
        if not harmless:
            assert moved.state.exit_status == 128 + event.number


@given(limits, histories, st.integers(1, 3))
def test_a_driver_that_wakes_as_told_ends_in_bounded_time(limits, history, stuck):
    """Requests that never end and models that never stop do not keep the process."""
    state = Shutdown(limits=limits)
    for _, _, moved in play(limits, history):
        state = moved.state
    if not state.ending:
        state = state.on(Signal(at=state.now if state.now > 0 else 0.0, number=15)).state
    for _ in range(6):
        if state.phase is Phase.ENDED:
            break
        assert state.wake_at < math.inf
        state = state.on(Tick(at=state.wake_at, in_flight=stuck)).state
    assert state.phase is Phase.ENDED
    late = max(
        state.began_at + limits.total_s,
        max((m.state.now for *_, m in play(limits, history)), default=0),
    )
    assert state.now <= late + 1e-6


TINY_S = 1e-6
"""Below this a sum of times may round to the time itself."""


@given(limits, st.integers(0, 60), st.integers(0, 40))
def test_many_ticks_give_the_steps_that_few_give(limits, extra, in_flight):
    """Waking up more often than told changes nothing.

    But where nothing is in flight and no time is left to stop: then only a driver that wakes
    early can stop in time.
    """
    left_s = limits.stop_s + limits.refuse_s
    assume(in_flight or left_s > TINY_S)

    def run(times):
        state = Shutdown(limits=limits).on(Started(at=0)).state
        state = state.on(Signal(at=1, number=15)).state
        steps = []
        while state.phase is not Phase.ENDED:
            due = min([t for t in times if t > state.now] + [state.wake_at])
            moved = state.on(Tick(at=due, in_flight=in_flight))
            steps += [(step, round(moved.state.now, 6)) for step in moved.steps]
            state = moved.state
            if Step.STOP in moved.steps and Step.KILL not in moved.steps:
                moved = state.on(Stopped(at=state.now))
                steps += [(step, round(moved.state.now, 6)) for step in moved.steps]
                state = moved.state
        return steps

    few = run([])
    many = run([1 + 50 * (i + 1) / (extra + 1) for i in range(extra)])
    assert [step for step, _ in few] == [step for step, _ in many]
    if in_flight:
        assert few == many


@given(limits, seconds, st.booleans())
def test_a_limit_of_the_system_is_kept(limits, limit, started):
    state = Shutdown(limits=limits)
    state = state.on(Started(at=0)).state if started else state
    state = state.on(Signal(at=1, number=1, limit_s=limit)).state
    while state.phase is not Phase.ENDED:
        state = state.on(Tick(at=state.wake_at, in_flight=1)).state
    assert state.now <= 1 + limit + 1e-6


def test_the_whole_sequence_with_the_defaults():
    state = Shutdown()
    script = [
        (Started(at=0.0), Phase.SERVING, ()),
        (Signal(at=10.0, number=15), Phase.LAME_DUCK, (Step.NOT_READY,)),
        (Signal(at=10.1, number=15), Phase.LAME_DUCK, ()),
        (Tick(at=14.9, in_flight=4), Phase.LAME_DUCK, ()),
        (Tick(at=15.0, in_flight=4), Phase.DRAINING, (Step.CLOSE,)),
        (Tick(at=20.0, in_flight=2), Phase.DRAINING, ()),
        (Tick(at=22.0, in_flight=0), Phase.STOPPING, (Step.STOP,)),
        (Stopped(at=22.1), Phase.ENDED, (Step.LEAVE,)),
    ]
    for event, phase, steps in script:
        moved = state.on(event)
        state = moved.state
        assert (state.phase, moved.steps) == (phase, steps)
    assert state.exit_status == 0
    assert Limits().total_s < 30


def test_a_signal_before_serving_stops_at_once_and_gives_models_their_time():
    moved = Shutdown().on(Signal(at=3.0, number=15))
    assert moved.steps == (Step.NOT_READY, Step.CLOSE, Step.STOP)
    assert moved.state.wake_at == pytest.approx(3.8 + 8)
    late = moved.state.on(Tick(at=11.8, in_flight=0))
    assert late.steps == (Step.KILL,)
    assert late.state.exit_status == 143, "a model was cut off while it stopped"
    assert moved.state.on(Stopped(at=6.0)).state.exit_status == 0
    assert moved.state.on(Signal(at=4.5, number=2)).state.exit_status == 130


def test_a_server_that_nobody_has_asked_gets_the_whole_sequence():
    state = Shutdown().on(Started(at=0.0)).state
    moved = state.on(Signal(at=0.1, number=15))
    assert moved.steps == (Step.NOT_READY,)
    assert moved.state.wake_at == pytest.approx(5.1)


def test_the_lame_duck_ends_early_where_nobody_asks_if_that_is_wanted():
    for quiet_s, steps in ((0.0, ()), (2.0, (Step.CLOSE,))):
        state = Shutdown(limits=Limits(quiet_s=quiet_s)).on(Started(at=0.0)).state
        state = state.on(Signal(at=1.0, number=15)).state
        assert state.on(Tick(at=2.0, in_flight=0, quiet_s=1.9)).steps == ()
        assert state.on(Tick(at=2.0, in_flight=0, quiet_s=2.0)).steps == steps


def test_a_signal_that_does_not_insist_is_ignored_while_the_process_ends():
    state = Shutdown().on(Started(at=0.0)).state
    state = state.on(Signal(at=1.0, number=15)).state
    assert state.on(Signal(at=9.0, number=15, insists=False)).steps == ()
    assert state.on(Signal(at=9.0, number=15)).steps == (Step.KILL,)


def test_limits_refuse_what_is_not_a_time():
    with pytest.raises(ValueError, match="drain_s = -1"):
        Limits(drain_s=-1)
    with pytest.raises(ValueError, match="lame_duck_s = nan"):
        Limits(lame_duck_s=math.nan)


def test_an_unknown_event_is_refused():
    with pytest.raises(TypeError, match="not an event"):
        Shutdown().on("TERM")


@pytest.mark.parametrize(("gap", "steps"), [(0.25, ()), (0.5, ()), (0.75, (Step.KILL,))])
def test_the_same_signal_is_an_echo_up_to_the_limit_and_a_second_one_after_it(gap, steps):
    state = Shutdown(limits=Limits(echo_s=0.5)).on(Started(at=0.0)).state
    state = state.on(Signal(at=1.0, number=15)).state
    assert state.on(Signal(at=1.0 + gap, number=15)).steps == steps
    assert state.on(Signal(at=1.0 + gap, number=2)).steps == (), "one request, by two signals"
    assert state.on(Signal(at=2.01, number=2)).steps == (Step.KILL,)


def test_the_longest_time_counts_a_start_that_is_cut_off():
    short = {"lame_duck_s": 0.0, "drain_s": 0.0, "refuse_s": 0.0, "stop_s": 0.25}
    assert Limits(**short, abort_s=3.0).total_s == 3.25
    assert Limits(**short, abort_s=0.0).total_s == 0.25


def test_an_event_from_before_the_last_one_counts_as_happening_now():
    serving = Shutdown().on(Started(at=5.0)).state
    ending = serving.on(Signal(at=3.0, number=15)).state
    assert (ending.now, ending.began_at) == (5.0, 5.0)
