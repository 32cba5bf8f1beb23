"""What has happened to a step so far: kept in its Job's annotation, whoever reads it next. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlops_ext.codec import decode, encode
from mlops_ext.memory import MemoryPlan

__all__ = ["PREFIX", "TRACK_ANNOTATION", "Track", "track_of"]

PREFIX = "mlops-ext.io"
"""Of our labels and annotations."""
TRACK_ANNOTATION = f"{PREFIX}/track"


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """What has happened to a step so far; kept in its Job's annotation.

    Attributes:
        base: name of the step's first Job.
        number: 1 for the first Job, one more for each that followed it.
        oom_retries: how many of them followed a kill for memory.
        disruptions: how many followed an eviction, a preemption or a drain.
        plan: the memory plan; None until the first kill where nobody asked for memory.
        family: the step's code; steps of one family need about the same memory.
        alone: it runs on a node without other steps of the run, to learn what it needs.
        attempts: the attempts that have ended, as `metadata.AttemptRecord.dump` gives them.
    """

    base: str
    number: int = 1
    oom_retries: int = 0
    disruptions: int = 0
    plan: MemoryPlan | None = None
    family: str = ""
    alone: bool = False
    attempts: tuple[Mapping[str, Any], ...] = ()

    def dump(self) -> str:
        """The track as JSON."""
        return json.dumps(
            {
                "base": self.base,
                "number": self.number,
                "oom_retries": self.oom_retries,
                "disruptions": self.disruptions,
                "plan": encode(self.plan) if self.plan else None,
                "family": self.family,
                "alone": self.alone,
                "attempts": list(self.attempts),
            },
            separators=(",", ":"),
        )


def track_of(job: Mapping[str, Any]) -> Track | None:
    """The track of a Job of ours; None for any other Job."""
    text = (job["metadata"].get("annotations") or {}).get(TRACK_ANNOTATION)
    if text is None:
        return None
    found = json.loads(text)
    plan = found["plan"]
    return Track(
        base=found["base"],
        number=found["number"],
        oom_retries=found["oom_retries"],
        disruptions=found["disruptions"],
        plan=decode(MemoryPlan, plan) if plan else None,
        family=found["family"],
        alone=found["alone"],
        attempts=tuple(found["attempts"]),
    )
