"""How far a step has come: kept in its Job's annotation, to outlive every process. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlops_ext.codec import decode, encode
from mlops_ext.memory import Features, MemoryPlan

PREFIX = "mlops-ext.io"
"""Of our labels and annotations."""
STATE_ANNOTATION = f"{PREFIX}/attempt-state"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptState:
    """What has happened to a step before and with the present attempt.

    Attributes:
        base: name of the step's first Job.
        number: 1 for the first Job, one more for each that succeeded it.
        oom_retries: how many of them followed a kill for memory.
        disruptions: how many followed an eviction, a preemption or a drain.
        features: what was known of the step before its start.
        version: the step's code, as its history tells versions apart.
        plan: the memory plan; None until the first kill where nobody asked for memory.
        isolated: it runs on a node without other steps of the run, whose needs nobody knows.
        attempts: the attempts that have ended, as `AttemptRecord.dump` gives them.
    """

    base: str
    number: int = 1
    oom_retries: int = 0
    disruptions: int = 0
    features: Features = Features()  # noqa: RUF009 - frozen
    version: str = ""
    plan: MemoryPlan | None = None
    isolated: bool = False
    attempts: tuple[Mapping[str, Any], ...] = ()

    def dump(self) -> str:
        """The state as JSON."""
        return json.dumps(encode(self), separators=(",", ":"))


def state_of(job: Mapping[str, Any]) -> AttemptState | None:
    """The state in the annotation of a Job of ours; None for any other Job."""
    text = (job["metadata"].get("annotations") or {}).get(STATE_ANNOTATION)
    return None if text is None else decode(AttemptState, json.loads(text))
