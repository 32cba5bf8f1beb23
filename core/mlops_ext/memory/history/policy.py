"""The memory policy that learns from earlier runs."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from mlops_ext.memory.history.observations import (
    BEGUN_ANEW,
    Observation,
    Records,
)
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
# Runs of the very same version from which on the other versions are left out.
_OWN = 8
# With fewer runs than this the user's request is the second allocation.
_TRUSTED = 5
# With fewer than this, all within this factor, it follows the first allocation that no run has
# outgrown.
_KNOWN = 30
_ALIKE = 2.0
# The reason names the input if the predictors that look at it have more than this share.
_MOSTLY = 0.5
# Seconds until a resize takes effect if none was seen: the kubelet looks at a pod at least
# this often.
_LATENCY_S = 60.0
# Resizes looked at, of all tasks: how long they take is a matter of the cluster.
_RESIZES = 64
# Tasks kept in mind; a few kB each.
_TASKS = 2000


class HistoryPolicy:
    """The cheapest ladder for the peaks that earlier runs lead to expect.

    The first run of a task gets the user's request, then doubling, as "double" does. From the
    second on, several predictors turn past peaks and, if it is known, the input size into
    distributions of the next peak; they are mixed, those most whose ladders would have cost least
    so far. Dynamic programming turns the mixture into the ladder with the least expected cost
    (`best_ladder`). While few runs are known, the request follows what they lead to expect.

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
        try:
            key = _shared(key)
            with self._task(key) as task:
                return self._plan(task, key, features.known_input, Quantity.of(request), caps)
        except Exception as error:  # noqa: BLE001 - a history that fails must never fail a task
            logger.warning("memory history unusable, falling back to the request: %s", error)
            return request_plan(request, caps, self.settings, why="History unusable")

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
        """Add a run to the history; one whose peak was not measured is left out.

        The attempts of a run that were killed count as one: the largest limit of theirs, until
        the run gets through.
        """
        try:
            key = _shared(key)
            run = Observation(
                peak=peak,
                runtime_s=runtime_s,
                version=key.version,
                input_bytes=getattr(features, "known_input", None),
                censored=censored,
                curve=curve,
                first_limit=getattr(plan, "first_limit", None),
                resizes_s=resizes_s,
            )
            self.records.append(key, run if run.censored else self._assessed(key, run))
        except ValueError as error:
            logger.debug("run of %s left out: %s", key, error)
        except Exception as error:  # noqa: BLE001 - a history that fails must never fail a task
            logger.warning("run not added to the memory history: %s", error)

    def _assessed(self, key: TaskKey, run: Observation) -> Observation:
        """*run* with what was to be expected of it, if the earlier runs can be read."""
        try:
            with self._task(key) as task:
                if not len(task.series):
                    return run
                assessed = task.series.assess(run.input_bytes, run.peak, self.settings)
            ratio, outcomes, first = assessed
            first_limit = run.first_limit or math.ceil(first)
            return replace(run, ratio=ratio, outcomes=outcomes, first_limit=first_limit)
        except Exception as error:  # noqa: BLE001 - as above
            logger.debug("run of %s is added, but earlier runs could not be read: %s", key, error)
            return run

    @contextlib.contextmanager
    def _task(self, key: TaskKey) -> Iterator[_Task]:
        """The state of *key*, up to date with the records, for one thread at a time.

        The records are read outside of the lock: a file that is busy keeps nobody else waiting.
        """
        known = self._cache.tasks.get(key)
        new = self.records.read(key, after=known.newest if known else 0, limit=WINDOW)
        with self._cache.lock:
            task = self._cache.tasks.pop(key, None) or _Task()
            if new and new[0][0] // BEGUN_ANEW != task.newest // BEGUN_ANEW:
                task = _Task()
            for number, run in new:
                if number > task.newest:
                    task.add(number, run, key.version)
                    self._cache.resizes_s.extend(run.resizes_s)
            self._cache.tasks[key] = task
            if len(self._cache.tasks) > _TASKS:
                del self._cache.tasks[next(iter(self._cache.tasks))]
            yield task

    def _plan(
        self,
        task: _Task,
        key: TaskKey,
        size: float | None,
        request: Quantity | None,
        caps: Caps,
    ) -> MemoryPlan:
        series, cap, growth = task.series, caps.binding, self.settings.growth
        in_place = None
        if len(series):
            forecast = series.forecast(size, self.settings)
            ladder = self._allocations(_with_request(forecast.ladder, request, series), cap)
            in_place = self._in_place(series, ladder[0], cap)
            reason = _reason(series, forecast.by_input, ladder, cap, request, in_place, growth)
        else:
            kills = series.kills.values()
            killed = max((kill.bound for kill in kills), default=0.0)
            if killed < (request or 1):
                return request_plan(request, caps, self.settings, why="First run")
            own = max((k.bound for k in kills if k.version == key.version), default=0.0)
            # Code that was killed starts with more, other code, perhaps repaired, as requested.
            more = growth * killed
            first = growth * own if own >= (request or 1) else request or more
            ladder = self._allocations(sorted((first, more)), cap)
            bound = Quantity.saturated(killed).human
            who = "Killed" if own else "Other code was killed"
            limit = f"; the cap is {cap}" if cap is not None and cap.memory < more else ""
            reason = f"{who} at {bound} before, and never got through: {_steps(ladder)}{limit}."
        return MemoryPlan(
            ladder=ladder,
            reason=reason,
            in_place=in_place,
            cap=cap,
            growth=growth,
            request=request or None,
        )

    def _allocations(self, ladder: Sequence[float], cap: Cap | None) -> tuple[Quantity, ...]:
        """*ladder* in whole MiB, not below `min_memory`, not above the cap, strictly rising."""
        wanted = (max(size, self.settings.min_memory) for size in ladder)
        sizes = (Quantity.saturated(math.ceil(size / _MIB) * _MIB) for size in wanted)
        return tuple(sorted({min(size, cap.memory) if cap else size for size in sizes}))

    def _in_place(self, series: Series, first: Quantity, cap: Cap | None) -> InPlace | None:
        choice = series.choice(self.settings, self._cache.latency_s)
        if choice is None:
            return None
        (start,) = self._allocations([choice.start * first], cap)
        return InPlace(
            start=start,
            threshold=choice.threshold,
            growth=choice.growth,
            ceiling=cap.memory if cap else None,
        )


class _Cache:
    """What the policies of one history share."""

    def __init__(self) -> None:
        self.tasks: dict[TaskKey, _Task] = {}
        self.lock = threading.Lock()
        self.resizes_s: deque[float] = deque(maxlen=_RESIZES)
        follow_forks(self)

    @property
    def latency_s(self) -> float:
        """Seconds until a resize takes effect here: nine of ten were no slower; or the default."""
        if not self.resizes_s:
            return _LATENCY_S
        ordered = sorted(self.resizes_s)
        slowest = ordered[len(ordered) * 9 // 10]
        return math.ceil(slowest) if math.isfinite(slowest) else slowest

    def after_fork(self) -> None:
        """In a child: the lock may be held by a thread that is not here."""
        self.lock = threading.Lock()


class _Task:
    """The runs of one step: of all versions, and of one."""

    __slots__ = ("any", "newest", "own")

    def __init__(self) -> None:
        self.any, self.own, self.newest = Series(), Series(), 0

    def add(self, number: int, run: Observation, version: str) -> None:
        self.newest = number
        self.any.add(run, version=version)
        if run.version == version:
            self.own.add(run, version=version)

    @property
    def series(self) -> Series:
        """The runs to go by."""
        return self.own if len(self.own) >= _OWN else self.any


def _shared(key: TaskKey) -> TaskKey:
    """*key* as the history knows it: ``train_2`` is ``train``, as though it were other code.

    Orchestrators number a step that occurs again. Its runs count until it has enough of its own.
    """
    step, _, number = key.step.rpartition("_")
    if not step or not number.isdecimal():
        return key
    return replace(key, step=step, version=f"{key.version} #{number}")


def _with_request(
    ladder: Sequence[float], request: Quantity | None, series: Series
) -> Sequence[float]:
    """*ladder* with the request in it while few runs are known, if that is higher.

    It comes second while there are fewer than `_TRUSTED`. It follows the first allocation that no
    run has outgrown, or the last one, while there are fewer than `_KNOWN` and all are alike: they
    may be smoke runs, and what outgrows them is of another kind.
    """
    few, (low, high) = len(series) < _TRUSTED, series.span
    if not request or not (few or (len(series) < _KNOWN and high <= _ALIKE * low)):
        return ladder
    above = (at for at, each in enumerate(ladder, 1) if few or each >= high)
    at = next(above, len(ladder))
    later = [each for each in ladder[at:] if each > request]
    return [*ladder[:at], request, *later] if request > ladder[at - 1] else ladder


def _steps(ladder: Sequence[Quantity], request: Quantity | None = None) -> str:
    return ", then ".join(
        f"{size.human} as you requested" if size == request else size.human for size in ladder
    )


def _reason(
    series: Series,
    by_input: float,
    ladder: Sequence[Quantity],
    cap: Cap | None,
    request: Quantity | None,
    in_place: InPlace | None,
    growth: float,
) -> str:
    """Why the plan is what it is, in a sentence that a user understands."""
    low, high = (Quantity.saturated(size).human for size in series.span)
    runs = "1 earlier run" if len(series) == 1 else f"{len(series)} earlier runs"
    text = f"{runs} peaked {f'at {low}' if low == high else f'between {low} and {high}'}"
    if by_input > _MOSTLY:
        text += ", and the size of the input tells which"
    if series.kills:
        bound = Quantity.saturated(max(kill.bound for kill in series.kills.values())).human
        text += f", another was killed at {bound}"
    text += f": {_steps(ladder, request)}"
    if cap is None or ladder[-1] < cap.memory:
        text += f", then {growth:g} times as much each time"
    if in_place:
        text += f". It starts with {in_place.start.human} and grows as it needs more"
    if cap is not None and ladder[-1] >= cap.memory:
        text += f"; the cap is {cap}"
    elif request and request not in ladder:
        text += f". You requested {request.human}"
    return f"{text}."
