"""An attempt at a step as data: its limit, its peak, how it ended. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlops_ext.memory import Cause, Decision, Quantity

CurvePoints = tuple[tuple[float, int], ...]
"""(seconds, bytes) points of the memory in use."""
_CURVE_POINTS = 32
_RISE = 1.03
"""A point is kept where memory has risen by so much."""

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
        peak: the most it was seen to use, anon and shared memory; None where nobody looked. For
            an attempt that was killed for memory it is at least this much.
        outcome: "completed", "killed for memory", "memory error", "evicted", "failed",
            "stopped".
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
        sizes = {"memory": self.memory, "peak": self.peak}
        texts = {key: size.human if size is not None else "none" for key, size in sizes.items()}
        return {
            "number": self.number,
            "outcome": self.outcome,
            **texts,
            "reason": self.reason,
            "node": self.node,
            "runtime_s": round(self.runtime_s, 3),
            "lost_s": round(self.lost_s, 3),
            **{f"{key}_bytes": int(size) for key, size in sizes.items() if size is not None},
            **({"input_bytes": self.input_bytes} if self.input_bytes is not None else {}),
            **({"version": self.version} if self.version else {}),
            **({"curve": [list(point) for point in self.curve]} if self.curve else {}),
            **({"resizes_s": list(self.resizes_s)} if self.resizes_s else {}),
        }

    @classmethod
    def load(cls, found: Mapping[str, Any]) -> AttemptRecord:
        """The attempt that `dump` wrote.

        Raises:
            ValueError: it is something else.
        """
        try:
            return cls(
                number=int(found["number"]),
                memory=_size(found.get("memory_bytes")),
                peak=_size(found.get("peak_bytes")),
                outcome=str(found["outcome"]),
                reason=str(found.get("reason", "")),
                node=str(found.get("node", "")),
                runtime_s=float(found.get("runtime_s", 0)),
                lost_s=float(found.get("lost_s", 0)),
                input_bytes=float(found["input_bytes"]) if "input_bytes" in found else None,
                version=str(found.get("version", "")),
                curve=tuple((float(s), int(size)) for s, size in found.get("curve", ())),
                resizes_s=tuple(map(float, found.get("resizes_s", ()))),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{found!r} is no recorded attempt") from error


def with_point(curve: CurvePoints, seconds: float, used: int) -> CurvePoints:
    """*curve* with one more point, if it is higher than the last; few points, however long."""
    if curve and used <= _RISE * curve[-1][1]:
        return curve
    return (*curve[:: 2 if len(curve) >= _CURVE_POINTS else 1], (round(seconds, 1), used))


def _size(number: object) -> Quantity | None:
    return Quantity(int(str(number))) if number is not None else None


def in_our_words(decision: Decision) -> Decision:
    """*decision* with core's names of settings as they are called here, and no error a kill."""
    reason = decision.reason
    if decision.cause is Cause.MEMORY_ERROR:
        reason = reason.replace("It was killed for memory", "It raised a memory error")
    for theirs, ours in _SETTINGS.items():
        reason = reason.replace(theirs, ours)
    return replace(decision, reason=reason)
