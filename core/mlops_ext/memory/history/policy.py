"""The memory policy that learns from earlier runs."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from mlops_ext.memory.history.allocations import Outcome
from mlops_ext.memory.history.observations import (
    BEGUN_ANEW,
    Observation,
    Records,
    compress_curve,
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
# With fewer runs than this the user's request counts: it is the second allocation.
_TRUSTED = 5
# The reason names the input where those that look at it have more than this share.
_MOSTLY = 0.5
# Seconds until a resize takes effect where none was seen: the kubelet looks at a pod at least
# this often.
_LATENCY_S = 60.0
# Resizes looked at, of all tasks: how long they take is a matter of the cluster.
_RESIZES = 64
# Tasks kept in mind; a few kB each.
_TASKS = 2000


class HistoryPolicy:
    """The cheapest ladder for the peaks that earlier runs lead to expect.

    The first run of a task gets the user's request, then doubling, as "double" does. From the
    second on, several predictors turn past peaks and, where it is known, the input size into
    distributions of the next peak; they are mixed, those most whose ladders would have cost least
    so far. Dynamic programming turns the mixture into the ladder with the least expected cost
    (`best_ladder`). Until five runs are known, what follows the first attempt is the request.

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
        key = _shared(key)
        try:
            with self._task(key) as task:
                return self._plan(task, key, features.known_input, request, caps)
        except Exception as error:  # noqa: BLE001 - a history that fails must never fail a task
            logger.warning("memory history unusable, falling back to the request: %s", error)
            return self._request_plan(request, caps, "History unusable")

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
        """Add a run to the history; a peak that is not positive is left out.

        The attempts of a run that were killed count as one: the largest limit of theirs, until
        the run gets through.
        """
        key = _shared(key)
        if peak <= 0:
            logger.debug("run of %s left out: no peak was measured", key)
            return
        size = features.known_input
        outcomes: Mapping[str, Sequence[Outcome]] = {}
        first, ratio = plan.first_limit if plan else None, None
        if not censored:
            try:
                with self._task(key) as task:
                    if len(task.series):
                        ratio, outcomes, first_now = task.series.assess(size, peak, self.settings)
                        first = first or Quantity.saturated(first_now)
            except Exception as error:  # noqa: BLE001 - a history that fails must never fail a task
                logger.debug("run of %s is added without a look at earlier ones: %s", key, error)
        run = Observation(
            peak=peak,
            runtime_s=runtime_s if math.isfinite(runtime_s) and runtime_s > 0 else 0.0,
            version=key.version,
            input_bytes=size,
            censored=censored,
            curve=compress_curve(curve),
            outcomes=outcomes,
            first_limit=first,
            ratio=ratio,
            resizes_s=tuple(resizes_s),
        )
        try:
            self.records.append(key, run)
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning("run not added to the memory history: %s", error)

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
        series, cap = task.series, caps.binding
        if not len(series):
            return self._first_plan(series, key, request, caps)
        forecast = series.forecast(size, self.settings)
        wanted = _with_request(forecast.ladder, request if len(series) < _TRUSTED else None)
        ladder = _allocations(wanted, cap, self.settings.min_memory)
        in_place = self._in_place(series, ladder[0], cap)
        return MemoryPlan(
            ladder=ladder,
            reason=_reason(
                series, forecast.by_input, ladder, cap, request, in_place, self.settings.growth
            ),
            in_place=in_place,
            cap=cap,
            growth=self.settings.growth,
            request=request or None,
        )

    def _request_plan(self, request: Quantity | None, caps: Caps, why: str) -> MemoryPlan:
        return request_plan(request, caps, self.settings, growth=self.settings.growth, why=why)

    def _first_plan(
        self, series: Series, key: TaskKey, request: Quantity | None, caps: Caps
    ) -> MemoryPlan:
        """The request, and more where runs were killed at as much and never got through.

        Code that was killed before starts with more; other code may be a repaired one, and starts
        with the request.
        """
        killed = max((kill.bound for kill in series.kills), default=0.0)
        own = max((k.bound for k in series.kills if k.version == key.version), default=0.0)
        if killed < (request or 1):
            return self._request_plan(request, caps, "First run")
        more = killed * self.settings.growth
        first = own * self.settings.growth if own >= (request or 1) else request or more
        cap = caps.binding
        wanted = {Quantity.saturated(size) for size in (first, more)}
        ladder = tuple(sorted({min(size, cap.memory) for size in wanted} if cap else wanted))
        limit = f"; the cap is {cap}" if cap is not None and cap.memory < more else ""
        return MemoryPlan(
            ladder=ladder,
            reason=f"{'Killed' if own else 'Other code was killed'} at"
            f" {Quantity.saturated(killed).human} before, and never got through:"
            f" {_steps(ladder)}{limit}.",
            cap=cap,
            growth=self.settings.growth,
            request=request or None,
        )

    def _in_place(self, series: Series, first: Quantity, cap: Cap | None) -> InPlace | None:
        choice = series.choice(self.settings, self._cache.latency_s)
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


def _round_up(size: float) -> Quantity:
    return Quantity.saturated(math.ceil(size / _MIB) * _MIB)


def _with_request(ladder: Sequence[float], request: Quantity | None) -> Sequence[float]:
    """*ladder* with the request in second place, where it starts below the request."""
    if not request or ladder[0] >= request:
        return ladder
    return [ladder[0], request, *(size for size in ladder if size > request)]


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


def _steps(ladder: Sequence[Quantity]) -> str:
    return ", then ".join(allocation.human for allocation in ladder)


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
        bound = Quantity.saturated(max(kill.bound for kill in series.kills)).human
        text += f", another was killed at {bound}"
    text += f": {_steps(ladder)}"
    if cap is None or ladder[-1] < cap.memory:
        text += f", then {growth:g} times as much each time"
    if in_place:
        text += f". It starts with {in_place.start.human} and grows as it needs more"
    if cap is not None and ladder[-1] >= cap.memory:
        text += f"; the cap is {cap}"
    elif request and ladder[0] < request and len(series) < _TRUSTED:
        text += f". Your request of {request.human} comes second while few runs are known"
    elif request and request not in ladder:
        text += f". You requested {request.human}"
    return f"{text}."
