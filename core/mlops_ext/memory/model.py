"""The plain data that crosses the memory policy's interface."""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from mlops_ext.memory.quantity import Quantity, as_number

_LARGEST_INPUT = 2.0**63

Curve: TypeAlias = Sequence[tuple[float, int]]
"""(seconds since the start, bytes) pairs of a run's memory, in order of time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskKey:
    """What counts as the same task, for its history.

    Attributes:
        pipeline: name of the pipeline.
        step: name of the step.
        version: code or image version; "" if it is not known.
    """

    pipeline: str
    step: str
    version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What is known of a task *before* it starts.

    Attributes:
        input_bytes: size of its input; None if it is not known. What is no number from one byte
            to 2**63 counts as not known.
    """

    input_bytes: float | None = None

    @property
    def known_input(self) -> float | None:
        """The input size if it can be used, else None."""
        return as_number(self.input_bytes, 1.0, _LARGEST_INPUT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cap:
    """The most memory an attempt can be given.

    Attributes:
        memory: the cap.
        name: what sets it, in the user's words, fit for "limited by NAME".
    """

    memory: Quantity
    name: str

    def __str__(self) -> str:
        return f"{self.memory.human} ({self.name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caps:
    """Everything that limits an allocation; the least binds. None or 0: no such limit.

    Attributes:
        node: allocatable memory of the largest node that may run the task.
        limit_range: the namespace's LimitRange maximum for a container.
        quota: what the ResourceQuota grants a single pod at most.
        max_memory: the user's own setting.
        node_name: name of that node, for messages.
    """

    node: Quantity | None = None
    limit_range: Quantity | None = None
    quota: Quantity | None = None
    max_memory: Quantity | None = None
    node_name: str = ""

    @property
    def binding(self) -> Cap | None:
        """The cap that binds, with its name; None if nothing limits."""
        node = f"the largest node, {self.node_name}" if self.node_name else "the largest node"
        named = (
            (self.max_memory, "the setting max_memory"),
            (self.limit_range, "the namespace's LimitRange"),
            (self.quota, "the namespace's ResourceQuota"),
            (self.node, node),
        )
        sized = ((Quantity.of(memory), name) for memory, name in named)
        caps = [Cap(memory=memory, name=name) for memory, name in sized if memory]
        return min(caps, key=lambda cap: cap.memory, default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class InPlace:
    """How to run a task whose memory can be resized while it runs.

    Attributes:
        start: the limit at the start.
        threshold: grow as soon as usage reaches this fraction of the limit.
        growth: the next limit is the last one times this.
        ceiling: never beyond this; None if nothing is known to limit it.
    """

    start: Quantity
    threshold: float
    growth: float
    ceiling: Quantity | None = None

    def __post_init__(self) -> None:
        """Refuse values that could never grow."""
        if not 0 < self.threshold <= 1:
            raise ValueError(f"InPlace.threshold = {self.threshold!r}: expected 0 < value <= 1")
        if not 1 < self.growth < math.inf:
            raise ValueError(f"InPlace.growth = {self.growth!r}: expected more than 1")

    def next_limit(self, limit: Quantity, usage: int) -> Quantity | None:
        """The limit to resize to now that *usage* bytes are in use, or None to leave it."""
        if usage < self.threshold * limit or (self.ceiling is not None and limit >= self.ceiling):
            return None
        wanted = limit
        while usage >= self.threshold * wanted:
            grown = Quantity.saturated(math.ceil(wanted * self.growth) + 1)
            if grown == wanted:
                break
            wanted = grown
        return wanted if self.ceiling is None else min(wanted, self.ceiling)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How much memory a task gets, attempt by attempt.

    Attributes:
        ladder: allocations, strictly increasing: the first attempt gets the first. Empty:
            run the task without a limit, as the user left it.
        reason: one plain sentence that says why, for logs and dashboards.
        in_place: how to grow without a restart; None if that does not pay.
        cap: no allocation is above it; None if nothing limits.
        growth: beyond the ladder the next limit is the last one times this; 1: no more than the
            ladder.
        request: what the user asked for: the last retry gets no less.
    """

    ladder: tuple[Quantity, ...]
    reason: str
    in_place: InPlace | None = None
    cap: Cap | None = None
    growth: float = 2.0
    request: Quantity | None = None

    def __post_init__(self) -> None:
        """Refuse a ladder that does not rise, or that rises above its cap."""
        for low, high in zip(self.ladder, self.ladder[1:], strict=False):
            if low >= high:
                raise ValueError(f"MemoryPlan.ladder = {self.ladder!r}: expected rising sizes")
        if self.ladder and not self.ladder[0] > 0:
            raise ValueError(f"MemoryPlan.ladder = {self.ladder!r}: expected positive allocations")
        if not 1 <= self.growth < math.inf:
            raise ValueError(f"MemoryPlan.growth = {self.growth!r}: expected 1 or more")
        if self.cap is not None and self.ladder and self.ladder[-1] > self.cap.memory:
            raise ValueError(f"MemoryPlan.ladder = {self.ladder!r}: above the cap {self.cap}")

    @property
    def first_limit(self) -> Quantity | None:
        """The first attempt's memory; None: leave the task without a limit."""
        return self.ladder[0] if self.ladder else None

    def after(self, memory: Quantity) -> Quantity | None:
        """What the attempt after one that had *memory* gets, or None if there is no more."""
        if self.cap is not None and memory >= self.cap.memory:
            return None
        for allocation in self.ladder:
            if allocation > memory:
                return allocation
        if self.growth <= 1:
            return None
        grown = Quantity.saturated(max(math.ceil(memory * self.growth), memory + 1))
        if grown <= memory:  # the largest that there is
            return None
        return grown if self.cap is None else min(grown, self.cap.memory)

    def capped(self, caps: Caps) -> MemoryPlan:
        """The same plan with no allocation above the lowest of its own cap and *caps*."""
        known = [cap for cap in (self.cap, caps.binding) if cap is not None]
        if not known:
            return self
        lowest = min(known, key=lambda cap: cap.memory)
        ladder = tuple(sorted({min(memory, lowest.memory) for memory in self.ladder}))
        return replace(self, ladder=ladder, cap=lowest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt that has ended.

    Attributes:
        memory: the limit it ran with; None if it had none.
        oom_retries: how many retries went to out-of-memory kills before this one. The user's
            own retries are not counted here.
        container: the container the plan is for; None if there is only one.
    """

    memory: Quantity | None
    oom_retries: int = 0
    container: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the orchestrator saw of an attempt's end: facts, not conclusions.

    Attributes:
        exit_code: exit code of the killed container.
        oom_killed: its ``reason`` is OOMKilled, or the kernel counted an OOM kill in its cgroup.
        memory_error: it ended with a MemoryError or ``std::bad_alloc`` of its own.
        disruption: why it was taken from its node (eviction for memory pressure, preemption,
            drain: the pod's DisruptionTarget condition), or "".
        storage_evicted: it was evicted for its use of disk.
        refused: the API server's message if a quota or LimitRange refused the pod, or "".
        succeeded: the task as a whole completed.
        peak: the largest use that was sampled, anon + shmem if possible.
        container: name of the container that was killed.
        node: name of the node it ran on.
    """

    exit_code: int | None = None
    oom_killed: bool = False
    memory_error: bool = False
    disruption: str = ""
    storage_evicted: bool = False
    refused: str = ""
    succeeded: bool = False
    peak: Quantity | None = None
    container: str | None = None
    node: str | None = None


class Cause(enum.Enum):
    """What ended an attempt, as far as the evidence goes."""

    OUT_OF_MEMORY = "out of memory"
    MEMORY_ERROR = "memory error"
    DISRUPTED = "disrupted"
    REFUSED = "refused"
    STORAGE = "storage"
    AMBIGUOUS = "killed by signal 9"
    OTHER = "other"
    NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """Run the task again with this much memory.

    Attributes:
        memory: the limit of the next attempt; None: still without a limit.
        reason: one plain sentence.
        cause: what ended the attempt before.
        wait: nothing was killed: a quota is in the way, so start when it gives way.
    """

    memory: Quantity | None
    reason: str
    cause: Cause = Cause.OUT_OF_MEMORY
    wait: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryElsewhere:
    """Run the task again with the same memory, on another node; costs no OOM retry.

    Attributes:
        memory: the limit, unchanged; None: still without a limit.
        reason: one plain sentence.
        cause: what ended the attempt before.
    """

    memory: Quantity | None
    reason: str
    cause: Cause = Cause.DISRUPTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Fail:
    """Do not run the task again on account of memory.

    Attributes:
        reason: one plain sentence that says what to do about it.
        cause: what ended the attempt. NONE: the task succeeded, nothing is to be done. Where it
            is not about memory (OTHER, AMBIGUOUS, STORAGE) the user's own retries still apply.
    """

    reason: str
    cause: Cause = Cause.OUT_OF_MEMORY


Decision: TypeAlias = Retry | RetryElsewhere | Fail


class MemoryPolicy(Protocol):
    """What an orchestrator asks. Third parties register one by ``mlops_ext_memory_policies``."""

    @property
    def learns(self) -> bool:
        """Whether `observe` changes what `decide` answers; False spares calls of `observe`."""
        ...

    def with_budget(self, *, oom_retries: int, retry_memory_error: bool) -> MemoryPolicy:
        """Return the same policy, and the same history, with a step's own number of retries.

        Args:
            oom_retries: retries for out-of-memory kills.
            retry_memory_error: retry a memory error of the task's own, too; False leaves that as
                the policy has it.
        """
        ...

    def decide(
        self, key: TaskKey, features: Features, request: Quantity | None, caps: Caps
    ) -> MemoryPlan:
        """Return the plan for a task about to start; *request* is what the user asked for."""
        ...

    def on_failure(self, plan: MemoryPlan, attempt: Attempt, evidence: Evidence) -> Decision:
        """Return what to do after *attempt* of *plan* ended as *evidence* says."""
        ...

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
        """Take note of a run.

        Args:
            key: the task.
            features: as they were known before the start.
            peak: the most memory it used; for a killed attempt its limit.
            runtime_s: how long it ran.
            censored: it was killed for memory, so that the peak is *at least* this much.
            curve: its memory over time, at any resolution.
            plan: the plan that was in force.
            resizes_s: for each resize while it ran, the seconds until it took effect; infinite
                for one that never did.
        """
        ...
