"""The memory policy that learns from earlier runs."""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from mlops_ext.errors import HistoryError
from mlops_ext.memory.history.observations import Observation, Records, compress_curve
from mlops_ext.memory.history.predictors import DEFAULT
from mlops_ext.memory.history.series import WINDOW, Series
from mlops_ext.memory.model import (
    Attempt,
    Cap,
    Caps,
    Curve,
    Decision,
    Evidence,
    Features,
    InPlace,
    MemoryPlan,
    TaskKey,
)
from mlops_ext.memory.policies import MemorySettings, escalate, request_plan
from mlops_ext.memory.quantity import Quantity
from mlops_ext.processes.forks import follow_forks

logger = logging.getLogger(__name__)

_MIB = 1024**2
_OWN = 8
"""Runs of the very same version from which on the other versions are left out."""
_TASKS = 2000
"""Tasks kept in mind; a few kB each."""


class HistoryPolicy:
    """The cheapest ladder for the peaks that earlier runs lead to expect.

    The first run of a task gets the user's request, then doubling, as "double" does. From
    the second on, several experts predict the peak from past peaks and, where it is known, the
    input size; the one whose ladders would have cost least so far is followed. Dynamic
    programming turns its prediction into the ladder with the least expected cost (`best_ladder`).

    Runs of other versions of the same step count until there are enough of its own. The state is
    a cache of *records*, read again (only what is new) at each decision, so that any number of
    processes may share a history. A history that fails never fails a task: the decision falls
    back to the request and says so. Methods may be called from several threads,
    and in forked children.
    """

    def __init__(self, *, records: Records, settings: MemorySettings | None = None) -> None:
        self.records = records
        self.settings = settings or MemorySettings()
        self._cache = _Cache()

    @property
    def learns(self) -> bool:
        """True: earlier runs decide."""
        return True

    def with_budget(self, *, oom_retries: int, retry_memory_error: bool) -> HistoryPolicy:
        """The same policy and the same history, with a step's own number of retries."""
        policy = copy.copy(self)
        policy.settings = self.settings.with_budget(
            oom_retries, retry_memory_error=retry_memory_error
        )
        return policy

    def decide(
        self, key: TaskKey, features: Features, request: Quantity | None, caps: Caps
    ) -> MemoryPlan:
        """The plan for a task about to start."""
        settings = self.settings
        with self._cache.lock:
            try:
                series = self._task(key).series
            except HistoryError as error:
                logger.warning("memory history unusable, falling back to the request: %s", error)
                return request_plan(
                    request, caps, settings, growth=settings.growth, why="History unusable"
                )
            if not len(series):
                return self._first_plan(series, request, caps)
            forecast = series.forecast(features.known_input)
            ladder = _allocations(forecast.ladder, caps.binding, settings.min_memory)
            reason = _reason(series, forecast.expert, ladder, caps.binding)
            return MemoryPlan(
                ladder=ladder,
                reason=reason,
                in_place=self._in_place(series, ladder[0], caps.binding),
                cap=caps.binding,
                growth=settings.growth,
                request=request or None,
            )

    def on_failure(self, plan: MemoryPlan, attempt: Attempt, evidence: Evidence) -> Decision:
        """The next allocation after an out-of-memory kill; see `escalate`."""
        return escalate(plan, attempt, evidence, self.settings)

    def observe(  # noqa: PLR0913 - what is known of a run
        self,
        key: TaskKey,
        features: Features,
        peak: Quantity,
        runtime_s: float,
        *,
        censored: bool = False,
        curve: Curve = (),
        plan: MemoryPlan | None = None,
        resizes_s: Sequence[float] = (),
    ) -> None:
        """Add a run to the history; a peak that is not positive is left out."""
        del resizes_s
        if peak <= 0:
            logger.debug("run of %s left out: no peak was measured", key)
            return
        runtime_s = runtime_s if math.isfinite(runtime_s) and runtime_s > 0 else 0.0
        size = features.known_input
        costs: dict[str, float] = {}
        first, ratio = None, None
        with self._cache.lock:
            try:
                series = self._task(key).series
                if not censored and len(series):
                    costs = series.costs_of(size, peak)
                    forecast = series.forecast(size)
                    ratio = peak / forecast.peaks.median
                    first = (plan.first_limit if plan else None) or Quantity.saturated(
                        forecast.ladder[0]
                    )
                self.records.append(
                    key,
                    Observation(
                        peak=peak,
                        runtime_s=runtime_s,
                        version=key.version,
                        input_bytes=size,
                        censored=censored,
                        curve=compress_curve(curve),
                        costs=costs,
                        first_limit=first,
                        ratio=ratio,
                    ),
                )
            except HistoryError as error:
                logger.warning("run not added to the memory history: %s", error)

    def _task(self, key: TaskKey) -> _Task:
        """The state of *key*, up to date with the records."""
        task = self._cache.tasks.pop(key, None) or _Task.new(self.settings)
        new = self.records.read(key, after=task.newest, limit=WINDOW)
        for number, run in new:
            task.newest = max(task.newest, number)
            task.any.add(run)
            if run.version == key.version:
                task.own.add(run)
        self._cache.tasks[key] = task
        if len(self._cache.tasks) > _TASKS:
            del self._cache.tasks[next(iter(self._cache.tasks))]
        return task

    def _first_plan(self, series: Series, request: Quantity | None, caps: Caps) -> MemoryPlan:
        """The request, or more where a run was killed at more and never got through."""
        settings = self.settings
        killed = series.largest_killed
        wanted = Quantity.saturated(killed * settings.growth)
        if not killed or wanted <= (request or 0):
            return request_plan(request, caps, settings, growth=settings.growth, why="First run")
        cap = caps.binding
        given = wanted if cap is None else min(wanted, cap.memory)
        limit = f"; the cap is {cap}" if cap is not None and given < wanted else ""
        return MemoryPlan(
            ladder=(given,),
            reason=f"Killed at {Quantity.saturated(killed).human} before, and never got through:"
            f" {given.human}{limit}.",
            cap=cap,
            growth=settings.growth,
            request=request or None,
        )

    def _in_place(self, series: Series, first: Quantity, cap: Cap | None) -> InPlace | None:
        choice = series.choice()
        if choice is None:
            return None
        start = _round_up(max(choice.start * first, self.settings.min_memory))
        return InPlace(
            start=start if cap is None else min(start, cap.memory),
            threshold=choice.threshold,
            growth=choice.growth,
            ceiling=cap.memory if cap else None,
        )


class _Cache:
    """What the policies of one history share."""

    def __init__(self) -> None:
        self.tasks: dict[TaskKey, _Task] = {}
        self.lock = threading.Lock()
        follow_forks(self)

    def after_fork(self) -> None:
        """In a child: the lock may be held by a thread that is not here."""
        self.lock = threading.Lock()


@dataclass(slots=True, kw_only=True)
class _Task:
    """The runs of one step: of all versions, and of one."""

    any: Series
    own: Series
    newest: int = field(default=0)

    @classmethod
    def new(cls, settings: MemorySettings) -> _Task:
        return cls(any=Series(settings), own=Series(settings))

    @property
    def series(self) -> Series:
        """The runs to go by."""
        return self.own if len(self.own) >= _OWN else self.any


def _round_up(size: float) -> Quantity:
    return Quantity.saturated(math.ceil(size / _MIB) * _MIB)


def _allocations(
    ladder: Sequence[float], cap: Cap | None, min_memory: Quantity
) -> tuple[Quantity, ...]:
    """*ladder* in whole MiB, at least *min_memory*, at most the cap, strictly rising."""
    allocations: list[Quantity] = []
    for size in ladder:
        allocation = _round_up(max(size, min_memory))
        allocation = allocation if cap is None else min(allocation, cap.memory)
        if not allocations or allocation > allocations[-1]:
            allocations.append(allocation)
    return tuple(allocations)


def _reason(series: Series, expert: str, ladder: Sequence[Quantity], cap: Cap | None) -> str:
    low, high = (Quantity.saturated(size).human for size in series.span)
    runs = "1 earlier run" if len(series) == 1 else f"{len(series)} earlier runs"
    span = f"at {low}" if low == high else f"between {low} and {high}"
    basis = "" if expert == DEFAULT else f" (judged by: {expert})"
    steps = ", then ".join(allocation.human for allocation in ladder)
    limit = f"; the cap is {cap}" if cap is not None and ladder[-1] >= cap.memory else ""
    return f"{runs} peaked {span}{basis}: {steps}{limit}."
