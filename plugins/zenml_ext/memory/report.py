"""What ``mlops-ext zenml memory`` shows: attempts, waste, and the settings to paste. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    total = 0.0
    for attempt in attempts:
        if attempt.memory is None:
            continue
        needed = attempt.peak or Quantity(0) if attempt.completed else Quantity(0)
        total += max(0, attempt.memory - needed) * attempt.runtime_s
    return total / _GB_HOUR


def settings_to_paste(steps: Sequence[StepMemory]) -> str:
    """YAML for ``pipeline.with_options(config_path=…)`` that starts each step with what it needs.

    Uses the policy's first limit; if it has none, the peak and a tenth.
    """
    lines = ["steps:"]
    for step in {step.step: step for step in steps}.values():
        first = step.following.first_limit if step.following else None
        if first is None and step.peak is not None:
            first = Quantity(step.peak + step.peak // 10)
        if first is None:
            continue
        mebibytes = -(-int(first) // 1024**2)
        lines += [
            f"  {step.step}:",
            "    settings:",
            "      orchestrator:",
            f"        memory: {mebibytes}Mi",
        ]
    return "\n".join(lines) if len(lines) > 1 else "# no step has a recorded peak"
