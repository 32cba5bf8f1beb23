"""What an orchestrator process remembers of a step from one look to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zenml_ext.kubernetes.objects.diagnosis import Ending
from zenml_ext.kubernetes.supervisor.step_runs import StepRow

__all__ = ["Watch"]

Manifest = Mapping[str, Any]


@dataclass(slots=True, kw_only=True)
class Watch:
    """A step under supervision, in this process.

    Attributes:
        current: name of the Job that counts now.
        held: its Job has failed, and what follows waits for another step.
    """

    current: str
    held: Manifest | None = None
    held_ending: Ending | None = None
    superseded: list[tuple[Manifest, str]] = field(default_factory=list)
    row: StepRow | None = None
    beats: bool = True
    beat_at: float = float("-inf")
    events_at: float = float("-inf")
    podless_since: float | None = None
    unfit_since: float | None = None
    scaling_given_up: bool = False
    told: str = ""
