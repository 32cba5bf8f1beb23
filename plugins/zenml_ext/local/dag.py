"""Which steps of a run may start now: pure, and told of every step that ends."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class State(enum.Enum):
    """What became of a step."""

    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"
    SKIPPED = "skipped"


_LOST = frozenset({State.FAILED, State.STOPPED, State.SKIPPED})


FAIL_FAST, CONTINUE_ON_FAILURE = "fail_fast", "continue_on_failure"
"""ZenML's execution modes that are neither the default nor like it."""


@dataclass(slots=True, kw_only=True)
class Dag:
    """The steps of a run and their states.

    Attributes:
        upstream: for each step the steps it needs, in the order of the pipeline. Names that are
            no steps here are done already (cached by the client).
        mode: what a failure means for steps that do not depend on the failed one, in ZenML's
            words.
    """

    upstream: Mapping[str, frozenset[str]]
    mode: str
    states: dict[str, State] = field(init=False)

    def __post_init__(self) -> None:
        self.states = dict.fromkeys(self.upstream, State.WAITING)

    def ready(self) -> list[str]:
        """Steps that may start now."""
        return [
            name
            for name in self.named(State.WAITING)
            if all(self._state(needed) is State.COMPLETED for needed in self.upstream[name])
        ]

    def start(self, name: str) -> None:
        """Take note that *name* has been started."""
        self.states[name] = State.RUNNING

    def finish(self, name: str, state: State) -> None:
        """Take note that *name* has ended, and skip what can no longer run."""
        self.states[name] = state
        if state is not State.COMPLETED and (
            self.mode != CONTINUE_ON_FAILURE or state is State.STOPPED
        ):
            self.skip_waiting()
        for waiting in self.named(State.WAITING):  # each stands below all that it needs
            if {self._state(needed) for needed in self.upstream[waiting]} & _LOST:
                self.states[waiting] = State.SKIPPED

    def skip_waiting(self) -> None:
        """Start nothing any more."""
        for name in self.named(State.WAITING):
            self.states[name] = State.SKIPPED

    def _state(self, needed: str) -> State:
        return self.states.get(needed, State.COMPLETED)

    def named(self, state: State) -> list[str]:
        """The steps in *state*, in the order of the pipeline."""
        return [name for name, found in self.states.items() if found is state]

    @property
    def done(self) -> bool:
        """Whether nothing runs and nothing can start any more."""
        return not self.named(State.RUNNING) and not self.ready()
