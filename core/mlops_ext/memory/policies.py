"""What follows a failed attempt, and the policy that needs no history."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from mlops_ext.memory.model import (
    Attempt,
    Caps,
    Cause,
    Decision,
    Evidence,
    Fail,
    Features,
    MemoryPlan,
    Retry,
    RetryElsewhere,
    TaskKey,
)
from mlops_ext.memory.quantity import Quantity

_SIGKILL = 137
_MIB = 1024**2
# The price of a kill for each preference, in mean peak times mean run time.
KILL_PRICES = {"fewer-kills": 16.0, "balanced": 3.0, "less-waste": 1.0}
_MIN_MEMORY = Quantity(16 * _MIB)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """Settings of the memory policies: ``[tool.mlops-ext.memory]``.

    Attributes:
        prefer: what to spend memory on. Balanced: a kill costs people more than the memory-time it
            burns; less-waste suits cheap batch work, fewer-kills what somebody waits for.
        kill_price: the number behind *prefer*, in its place: the price of a kill, in mean peak
            times mean run time; a kill of a small task counts as one of 1 GB and two minutes more.
        restart_s: start-up time of an attempt (scheduling, image, imports), during which its
            memory is held for nothing. It makes kills of short tasks dear; 60 s is usual on
            Kubernetes.
        time_to_failure: fraction of the run time after which a task that needs too much is
            killed. 1, the worst case: memory peaks at the end in about half of the published
            traces.
        growth: beyond the ladder the next limit is the last one times this. 2 reaches 16 times in
            4 retries; with 1 a kill beyond the ladder is final.
        max_oom_retries: retries for out-of-memory kills, apart from the user's own: after 16 times
            the memory it is rarely the memory that is wrong.
        retry_memory_error: count a MemoryError or bad_alloc as out of memory. Off: an allocation
            that no limit refused fails again with more.
        near_limit: an unexplained signal 9 counts as out of memory if usage was seen above this
            fraction of the limit; container runtimes lose the reason now and then.
        first_limit: memory for a first run that nobody gave a request. None: leave it without a
            limit.
        history: file of the history. Empty: ``mlops-ext/history.sqlite`` in the user's data
            directory.
        min_memory: no allocation is smaller: container runtimes need some MiB themselves to start
            a process.
    """

    prefer: Literal["fewer-kills", "balanced", "less-waste"] = "balanced"
    kill_price: float | None = None
    restart_s: float = 60.0
    time_to_failure: float = 1.0
    growth: float = 2.0
    max_oom_retries: int = 4
    retry_memory_error: bool = False
    near_limit: float = 0.9
    first_limit: Quantity | None = None
    history: str = ""
    min_memory: Quantity = _MIN_MEMORY

    def __post_init__(self) -> None:
        """Refuse values that would loop, or never retry by accident."""
        checks = (
            ("kill_price", self.price_of_kill, self.price_of_kill >= 0, "0 or more"),
            ("restart_s", self.restart_s, self.restart_s >= 0, "0 or more"),
            ("time_to_failure", self.time_to_failure, 0 < self.time_to_failure <= 1, "0 < … ≤ 1"),
            ("growth", self.growth, self.growth >= 1, "1 or more"),
            ("max_oom_retries", self.max_oom_retries, self.max_oom_retries >= 0, "0 or more"),
            ("near_limit", self.near_limit, 0 < self.near_limit <= 1, "0 < … ≤ 1"),
        )
        for name, value, is_good, expected in checks:
            if not is_good or not math.isfinite(value):
                raise ValueError(f"memory.{name} = {value!r}: expected {expected}")

    @property
    def price_of_kill(self) -> float:
        """The price of a kill, in mean peak times mean run time."""
        return KILL_PRICES[self.prefer] if self.kill_price is None else self.kill_price

    def with_budget(self, oom_retries: int, *, retry_memory_error: bool) -> MemorySettings:
        """These settings with a step's own number of retries; memory errors if either says so."""
        return replace(
            self,
            max_oom_retries=oom_retries,
            retry_memory_error=self.retry_memory_error or retry_memory_error,
        )


def classify(evidence: Evidence, attempt: Attempt, settings: MemorySettings) -> Cause:
    """What ended *attempt*, as far as *evidence* goes."""
    ordered = (
        (evidence.succeeded, Cause.NONE),
        (evidence.refused, Cause.REFUSED),
        (evidence.oom_killed, Cause.OUT_OF_MEMORY),
        (evidence.storage_evicted, Cause.STORAGE),
        (evidence.disruption, Cause.DISRUPTED),
        (evidence.memory_error, Cause.MEMORY_ERROR),
        (_is_near_limit(evidence, attempt, settings), Cause.OUT_OF_MEMORY),
        (evidence.exit_code == _SIGKILL, Cause.AMBIGUOUS),
    )
    return next((cause for fact, cause in ordered if fact), Cause.OTHER)


def _is_near_limit(evidence: Evidence, attempt: Attempt, settings: MemorySettings) -> bool:
    """Signal 9 without a reason, with usage seen near the limit."""
    if evidence.exit_code != _SIGKILL or evidence.peak is None or not attempt.memory:
        return False
    return evidence.peak >= settings.near_limit * attempt.memory


def escalate(
    plan: MemoryPlan, attempt: Attempt, evidence: Evidence, settings: MemorySettings
) -> Decision:
    """What to do after *attempt*: `MemoryPolicy.on_failure` of every policy here. Pure."""
    attempt = replace(attempt, memory=Quantity.of(attempt.memory))
    evidence = replace(evidence, peak=Quantity.of(evidence.peak))
    cause = classify(evidence, attempt, settings)
    if cause is Cause.REFUSED:
        return _after_refusal(plan, attempt, evidence)
    if cause is Cause.DISRUPTED:
        where = f" from node {evidence.node}" if evidence.node else ""
        return RetryElsewhere(
            memory=attempt.memory,
            reason=f"It was taken{where} ({evidence.disruption}), not killed for its own memory:"
            f" it runs again with {_size(attempt.memory)} on another node.",
        )
    if cause is Cause.OUT_OF_MEMORY or (
        cause is Cause.MEMORY_ERROR and settings.retry_memory_error
    ):
        return _after_oom(plan, attempt, evidence, settings, cause)
    return Fail(reason=_NOT_OURS[cause], cause=cause)


_NOT_OURS = {
    Cause.NONE: "It completed: nothing to retry, although one of its processes was killed.",
    Cause.STORAGE: "It was evicted for its use of disk: more memory would not help.",
    Cause.MEMORY_ERROR: "It raised a memory error and was not killed; set"
    " memory.retry_memory_error to have that retried with more memory.",
    Cause.AMBIGUOUS: "It was ended by signal 9, and nothing shows that memory was the cause.",
    Cause.OTHER: "It failed, and not for lack of memory.",
}


def _size(memory: Quantity | None) -> str:
    return memory.human if memory else "no limit"


def _after_refusal(plan: MemoryPlan, attempt: Attempt, evidence: Evidence) -> Decision:
    memory = attempt.memory
    if memory and plan.cap is not None and memory > plan.cap.memory:
        return Fail(
            reason=f"{memory.human} is more than the cap of {plan.cap}. {evidence.refused}",
            cause=Cause.REFUSED,
        )
    return Retry(
        memory=memory,
        cause=Cause.REFUSED,
        wait=True,
        reason=f"Nothing was killed: {_size(memory)} was refused for now ({evidence.refused}).",
    )


def _after_oom(
    plan: MemoryPlan,
    attempt: Attempt,
    evidence: Evidence,
    settings: MemorySettings,
    cause: Cause,
) -> Decision:
    if attempt.oom_retries >= settings.max_oom_retries:
        return Fail(
            reason=f"It was killed for memory {attempt.oom_retries + 1} times, the last time at"
            f" {_size(attempt.memory)}; raise memory.max_oom_retries or its request.",
            cause=cause,
        )
    if attempt.container and evidence.container and attempt.container != evidence.container:
        return Retry(
            memory=attempt.memory,
            cause=cause,
            reason=f"Container {evidence.container} was killed for memory, not"
            f" {attempt.container}, which runs again with {_size(attempt.memory)}.",
        )
    following = _next_memory(plan, attempt, evidence, settings)
    if following is None:
        return Fail(reason=_no_more(plan, attempt), cause=cause)
    if attempt.oom_retries + 1 >= settings.max_oom_retries and plan.request:
        following = max(following, plan.request)
        following = min(following, plan.cap.memory) if plan.cap else following
    return Retry(
        memory=following,
        cause=cause,
        reason=f"It was killed for memory at {_size(attempt.memory)}: it runs again with"
        f" {following.human} (retry {attempt.oom_retries + 1} of {settings.max_oom_retries}).",
    )


def _next_memory(
    plan: MemoryPlan, attempt: Attempt, evidence: Evidence, settings: MemorySettings
) -> Quantity | None:
    if attempt.memory:
        return plan.after(attempt.memory)
    # No limit: the node ran out, and a limit is what lets the scheduler keep room for it.
    if plan.growth <= 1:
        return None
    seen = evidence.peak or plan.first_limit or settings.first_limit or Quantity(1024 * _MIB)
    wanted = max(Quantity.saturated(seen * 1.25), settings.min_memory)
    return wanted if plan.cap is None else min(wanted, plan.cap.memory)


def _no_more(plan: MemoryPlan, attempt: Attempt) -> str:
    had = _size(attempt.memory)
    if plan.cap is not None and attempt.memory and attempt.memory >= plan.cap.memory:
        return f"It was killed for memory at {had}, and no more can be had: the cap is {plan.cap}."
    return f"It was killed for memory at {had}, and this policy never gives more: raise its memory."


def request_plan(
    request: Quantity | None, caps: Caps, settings: MemorySettings, *, why: str
) -> MemoryPlan:
    """The plan that gives the user's *request*, within the cap; *why* opens its reason."""
    cap = caps.binding if isinstance(caps, Caps) else None
    asked = Quantity.of(request)
    wanted = asked or settings.first_limit
    ladder: tuple[Quantity, ...]
    if not wanted:
        ladder, reason = (), "no request is set, so no limit."
    elif cap is not None and wanted > cap.memory:
        ladder, reason = (cap.memory,), f"{wanted.human} was asked for, but the cap is {cap}."
    else:
        source = "as requested" if asked else "the setting memory.first_limit"
        ladder, reason = (wanted,), f"{wanted.human}, {source}."
    return MemoryPlan(ladder=ladder, cap=cap, growth=settings.growth, reason=f"{why}: {reason}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestPolicy:
    """The user's request first, ``memory.growth`` times as much after each out-of-memory kill.

    Registered as "double", and as "fixed" with a growth of 1: then a kill is final, and a
    disruption still moves the task to another node.
    """

    settings: MemorySettings = field(default_factory=MemorySettings)

    @property
    def learns(self) -> bool:
        """False: earlier runs change nothing."""
        return False

    def with_budget(self, *, oom_retries: int, retry_memory_error: bool) -> RequestPolicy:
        """The same policy with a step's own number of retries."""
        settings = self.settings.with_budget(oom_retries, retry_memory_error=retry_memory_error)
        return RequestPolicy(settings=settings)

    def decide(
        self,
        key: TaskKey,  # noqa: ARG002 - part of the interface
        features: Features,  # noqa: ARG002 - part of the interface
        request: Quantity | None,
        caps: Caps,
    ) -> MemoryPlan:
        """The request, then growth."""
        growth = self.settings.growth
        why = f"Request, then {growth:g} times as much after each kill" if growth > 1 else "Fixed"
        return request_plan(request, caps, self.settings, why=why)

    def on_failure(self, plan: MemoryPlan, attempt: Attempt, evidence: Evidence) -> Decision:
        """What follows from the plan; see `escalate`."""
        return escalate(plan, attempt, evidence, self.settings)

    def observe(self, *args: Any, **run: Any) -> None:
        """Nothing: this policy learns nothing."""
