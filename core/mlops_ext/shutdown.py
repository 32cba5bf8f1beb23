"""The shutdown sequence of a server: signal, not ready, lame duck, drain, stop.

`Shutdown` is a pure state machine. It is fed events that carry their time, and answers with the
steps to take now. It owns no clock, no thread and no socket, and knows no framework: its driver
takes the steps, and calls it again at `Shutdown.wake_at` at the latest.

Guaranteed for every order of events:

- the steps come in the order of `Step`, each at most once, and none after LEAVE or KILL;
- STOP comes only when nothing is in flight any more, or REFUSE came before it;
- the time from the first signal to LEAVE or KILL is bounded by `Limits.total_s`;
- no step comes without a signal.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from dataclasses import dataclass, field, replace

__all__ = [
    "Deadlines", "Event", "Limits", "Phase", "Shutdown", "Signal", "Started", "Step", "Stopped",
    "Tick", "Transition",
]  # fmt: skip


class Phase(enum.Enum):
    """The phase of a server; phases only move forward."""

    STARTING = "starting"
    SERVING = "serving"
    LAME_DUCK = "lame duck"
    DRAINING = "draining"
    STOPPING = "stopping"
    ENDED = "ended"


class Step(enum.Enum):
    """What the driver has to do now."""

    NOT_READY = "answer readiness with no, go on serving"
    CLOSE = "stop accepting, finish what is in flight"
    REFUSE = "answer what is still in flight with an error"
    STOP = "stop the models and close the clients"
    LEAVE = "end the process in the normal way"
    KILL = "end the process at once with the exit status"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long each phase may take, in seconds.

    Attributes:
        lame_duck_s: accept and answer as before. 5: endpoints leave a load balancer in 1-3 s.
        drain_s: for requests in flight. 15: with the pause and stop_s below Kubernetes' 30 s.
        refuse_s: for the answers to refused requests to reach the network.
        stop_s: for models, engines and clients to stop. 8: an engine frees a GPU in seconds.
        abort_s: besides stop_s, for a process that serves no client yet to leave what it does.
        quiet_s: the lame duck ends early once no request has come for so long. 0, never: a
            balancer that has not noticed yet may be about to send one.
        echo_s: the same signal again within this time is an echo: a Ctrl-C reaches a whole
            process group, and wrappers pass it on. 0.15: a person cannot press it that fast.
        pair_s: another signal within this time belongs to the same request. 1: process managers
            send SIGTERM right after a Ctrl-C, or SIGHUP after SIGTERM.
    """

    lame_duck_s: float = 5.0
    drain_s: float = 15.0
    refuse_s: float = 0.3
    stop_s: float = 8.0
    abort_s: float = 0.8
    quiet_s: float = 0.0
    echo_s: float = 0.15
    pair_s: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is not a time."""
        for name, value in dataclasses.asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} = {value!r}: expected a number of seconds, 0 or more")

    @property
    def total_s(self) -> float:
        """The longest time from the first signal to the end."""
        return self.stop_s + max(self.lame_duck_s + self.drain_s + self.refuse_s, self.abort_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """When the steps of a shutdown are due at the latest; infinite while no signal came."""

    close_at: float = math.inf
    refuse_at: float = math.inf
    stop_at: float = math.inf
    kill_at: float = math.inf

    @classmethod
    def after(cls, close_at: float, limits: Limits) -> Deadlines:
        """The deadlines that follow from *close_at*, when the server stops accepting."""
        refuse_at = close_at + limits.drain_s
        stop_at = refuse_at + limits.refuse_s
        kill_at = stop_at + limits.stop_s
        return cls(close_at=close_at, refuse_at=refuse_at, stop_at=stop_at, kill_at=kill_at)

    def within(self, limit_s: float, now: float, limits: Limits) -> Deadlines:
        """These deadlines, each at most *limit_s* from *now*."""
        last = now + max(0.0, limit_s)
        # A quarter at most is for the stop: the rest is for the requests in flight.
        stop_at = max(now, last - min(limits.stop_s, max(0.0, limit_s) / 4))
        refuse_at = max(now, stop_at - limits.refuse_s)
        return Deadlines(
            close_at=min(self.close_at, now),
            refuse_at=min(self.refuse_at, refuse_at),
            stop_at=min(self.stop_at, stop_at),
            kill_at=min(self.kill_at, last),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened.

    Attributes:
        at: when, in seconds of a clock that does not go back.
    """

    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Started(Event):
    """The server accepts requests."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal(Event):
    """The server was asked to end.

    Attributes:
        number: the signal's number; 0 for a call from code, which never counts as a second one.
        lame_duck: False if no balancer has to notice: Ctrl-C at a terminal, a closing console.
        limit_s: the system ends the process after so long, whatever it does; None for never.
        insists: whether it ends the process at once if it comes second; False where kubelets,
            sidecars and process managers repeat themselves.
    """

    number: int
    lame_duck: bool = True
    limit_s: float | None = None
    insists: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick(Event):
    """Time has passed.

    Attributes:
        in_flight: requests accepted and not yet answered.
        quiet_s: seconds since the latest request came.
    """

    in_flight: int
    quiet_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stopped(Event):
    """The models have stopped and the clients are closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """The answer to an event.

    Attributes:
        state: the state after it.
        steps: what to do now, in this order.
    """

    state: Shutdown
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """The state of the sequence.

    Attributes:
        limits: how long each phase may take.
        phase: the current phase.
        signal: number of the signal that began it, or of the one that ended it; 0 for a call.
        began_at: when the first signal came; None before.
        due: when the next steps are due at the latest.
        refused: whether REFUSE was given.
        killed: whether KILL cut something off.
        now: the latest time seen; an event from before it counts as happening now.
    """

    limits: Limits = field(default_factory=Limits)
    phase: Phase = Phase.STARTING
    signal: int = 0
    began_at: float | None = None
    due: Deadlines = field(default_factory=Deadlines)
    refused: bool = False
    killed: bool = False
    now: float = -math.inf

    @property
    def ending(self) -> bool:
        """Whether readiness has to say no."""
        return self.began_at is not None

    @property
    def exit_status(self) -> int:
        """The status to end with: 128 + signal if something was cut off, else 0."""
        return 128 + self.signal if self.killed else 0

    @property
    def wake_at(self) -> float:
        """When a `Tick` is due at the latest; infinite if only an event can move things."""
        if self.phase is Phase.LAME_DUCK:
            return self.due.close_at
        if self.phase is Phase.DRAINING:
            return self.due.stop_at if self.refused else self.due.refuse_at
        return self.due.kill_at if self.phase is Phase.STOPPING else math.inf

    def on(self, event: Event) -> Transition:
        """The state after *event*, and the steps to take."""
        if not isinstance(event, (Signal, Started, Stopped, Tick)):
            raise TypeError(f"{event!r} is not an event of a shutdown")
        if self.phase is Phase.ENDED:
            return Transition(state=self)
        state = replace(self, now=max(self.now, event.at))
        if isinstance(event, Signal):
            return _signalled(state, event)
        if isinstance(event, Tick):
            return _ticked(state, event)
        if isinstance(event, Started) and state.phase is Phase.STARTING:
            state = replace(state, phase=Phase.SERVING)
        if isinstance(event, Stopped) and state.phase is Phase.STOPPING:
            return Transition(state=replace(state, phase=Phase.ENDED), steps=(Step.LEAVE,))
        return Transition(state=state)


def _signalled(state: Shutdown, event: Signal) -> Transition:
    if state.began_at is None:
        return _begin(state, event)
    if event.limit_s is not None:
        due = state.due.within(event.limit_s, state.now, state.limits)
        return Transition(state=replace(state, due=due))
    same = event.number == state.signal
    is_echo = state.now - state.began_at <= (state.limits.echo_s if same else state.limits.pair_s)
    if event.number == 0 or (is_echo and state.signal) or not event.insists:
        return Transition(state=state)
    if state.signal == 0:  # code asked first: this is the first signal of the outside
        return Transition(state=replace(state, signal=event.number))
    state = replace(state, signal=event.number, phase=Phase.ENDED, killed=True)
    return Transition(state=state, steps=(Step.KILL,))


def _begin(state: Shutdown, event: Signal) -> Transition:
    """The first signal: set every deadline."""
    limits, now = state.limits, state.now
    if state.phase is Phase.STARTING:
        phase = Phase.STOPPING
        steps: tuple[Step, ...] = (Step.NOT_READY, Step.CLOSE, Step.STOP)
        due = Deadlines(kill_at=now + limits.abort_s + limits.stop_s)
    else:
        phase, steps = Phase.LAME_DUCK, (Step.NOT_READY,)
        due = Deadlines.after(now + (limits.lame_duck_s if event.lame_duck else 0.0), limits)
    if event.limit_s is not None:
        due = due.within(event.limit_s, now, limits)
    state = replace(state, signal=event.number, began_at=now, phase=phase, due=due)
    return Transition(state=state, steps=steps)


def _ticked(state: Shutdown, tick: Tick) -> Transition:
    steps: list[Step] = []
    in_flight, quiet = tick.in_flight, 0 < state.limits.quiet_s <= tick.quiet_s
    if state.phase is Phase.LAME_DUCK and (quiet or state.now >= state.due.close_at):
        state = replace(state, phase=Phase.DRAINING)
        # What was accepted up to here is counted at the next tick, not at this one.
        return Transition(state=state, steps=(Step.CLOSE,))
    if state.phase is Phase.DRAINING:
        if in_flight > 0 and state.now >= state.due.refuse_at and not state.refused:
            state = replace(state, refused=True)
            steps.append(Step.REFUSE)
        if in_flight == 0 or (state.refused and state.now >= state.due.stop_at):
            state = replace(state, phase=Phase.STOPPING)
            steps.append(Step.STOP)
    if state.phase is Phase.STOPPING and state.now >= state.due.kill_at:
        state = replace(state, phase=Phase.ENDED, killed=True)
        steps.append(Step.KILL)
    return Transition(state=state, steps=tuple(steps))
