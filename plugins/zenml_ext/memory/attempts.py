"""An attempt at a step as data: its limit, its peak, how it ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from mlops_ext.codec import decode, encode
from mlops_ext.memory import Cause, Decision, Quantity

CurvePoints = tuple[tuple[float, int], ...]
"""(seconds, bytes) points of the memory in use."""
_CURVE_POINTS = 32
# A point is kept where memory has risen by so much.
_RISE = 1.03

_SIZES = frozenset({"memory", "peak"})
COMPLETED = "completed"
_SETTINGS = {
    "memory.max_oom_retries": "oom_retries",
    "memory.retry_memory_error": "retry_memory_error",
}
KILLED = "killed for memory"
"""The outcome of an attempt that ran out of memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One attempt at a step.

    Attributes:
        number: 1 for the first.
        memory: its limit; None where it had none.
        peak: the most it was seen to use, page cache aside; None where nobody looked. For
            an attempt that was killed for memory it is at least this much.
        outcome: "completed", "killed for memory", "memory error", "evicted", "failed",
            "refused" (it never began), "stopped".
        reason: why it had this much memory, or why it ended, in one sentence.
        node: where it ran.
        runtime_s: how long it ran.
        lost_s: seconds of its work that were lost; 0 for one that completed.
        input_bytes: size of the step's input, as it was known before the start, or None.
        version: the step's code, as its history tells versions apart.
        curve: (seconds, bytes) points of the memory in use.
        resizes_s: seconds until each resize of the running pod took effect; negative for one that
            never did.
    """

    number: int
    memory: Quantity | None
    peak: Quantity | None
    outcome: str
    reason: str = ""
    node: str = ""
    runtime_s: float = 0.0
    lost_s: float = 0.0
    input_bytes: float | None = None
    version: str = ""
    curve: CurvePoints = ()
    resizes_s: tuple[float, ...] = ()

    @property
    def completed(self) -> bool:
        """Whether the step completed in this attempt."""
        return self.outcome == COMPLETED

    def dump(self) -> dict[str, Any]:
        """The attempt as ZenML metadata; sizes are bytes, with a readable text beside them."""
        values = {
            "reason": self.reason,
            "runtime_s": self.runtime_s,
            **{name: value for name, value in encode(self).items() if value not in ("", None, ())},
        }
        for name in _SIZES:
            size = getattr(self, name)
            values[name] = size.human if size is not None else "none"
            values |= {f"{name}_bytes": int(size)} if size is not None else {}
        return values

    @classmethod
    def load(cls, found: Mapping[str, Any]) -> AttemptRecord:
        """The attempt that `dump` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            known = {one.name for one in fields(cls)} - _SIZES
            values = {name: value for name, value in found.items() if name in known}
            sizes = {name: found.get(f"{name}_bytes") for name in _SIZES}
            return decode(cls, {**values, **sizes})
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{found!r} is no recorded attempt") from error


def with_point(curve: CurvePoints, seconds: float, used: int) -> CurvePoints:
    """*curve* with one more point, if it is higher than the last; few points, however long."""
    if curve and used <= _RISE * curve[-1][1]:
        return curve
    return (*curve[:: 2 if len(curve) >= _CURVE_POINTS else 1], (round(seconds, 1), used))


def in_our_words(decision: Decision) -> Decision:
    """*decision* with core's names of settings as they are called here, and no error a kill."""
    reason = decision.reason
    if decision.cause is Cause.MEMORY_ERROR:
        reason = reason.replace("It was killed for memory", "It raised a memory error")
    for theirs, ours in _SETTINGS.items():
        reason = reason.replace(theirs, ours)
    return replace(decision, reason=reason)
