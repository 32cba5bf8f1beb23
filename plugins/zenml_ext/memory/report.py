"""What ``mlops-ext zenml memory`` shows: attempts, waste, and the settings to paste. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from mlops_ext.memory import MemoryPlan, Quantity
from zenml_ext.memory.attempts import AttemptRecord

_GB_HOUR = 1e9 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class StepMemory:
    """A step's memory in one run.

    Attributes:
        run: name of the run.
        step: name of the step.
        attempts: its attempts, first to last.
        following: the policy's plan for the next run; None where it could not be made.
    """

    run: str
    step: str
    attempts: Sequence[AttemptRecord]
    following: MemoryPlan | None = None

    @property
    def peak(self) -> Quantity | None:
        """The peak of the attempt that completed, else the most that was seen."""
        peaks = [a.peak for a in self.attempts if a.peak is not None]
        done = [a.peak for a in self.attempts if a.completed and a.peak is not None]
        return max(done or peaks, default=None)


def waste(attempts: Sequence[AttemptRecord]) -> float:
    """GB-hours given and not needed.

    All of a lost attempt's limit, and of one that completed what stood above its peak, times the
    time it ran. An attempt without a limit took nothing away.
    """
    return sum(
        max(0, one.memory - (one.peak or 0 if one.completed else 0)) * one.runtime_s / _GB_HOUR
        for one in attempts
        if one.memory is not None
    )


def settings_to_paste(steps: Sequence[StepMemory]) -> str:
    """YAML for ``pipeline.with_options(config_path=…)`` that starts each step with what it needs.

    Uses the policy's first limit; if it has none, the peak and a tenth.
    """
    found: dict[str, Any] = {}
    for step in {step.step: step for step in steps}.values():
        first = step.following.first_limit if step.following else None
        if first is None and step.peak is not None:
            first = Quantity(step.peak + step.peak // 10)
        if first is not None:
            memory = f"{-(-int(first) // 1024**2)}Mi"
            found[step.step] = {"settings": {"orchestrator": {"memory": memory}}}
    return yaml.safe_dump({"steps": found}) if found else "# no step has a recorded peak"
