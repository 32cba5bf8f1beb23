"""A step's attempts as metadata of the step run and of the pipeline run.

The dashboard shows them, ``mlops-ext zenml memory`` reads them back. Recording never fails a
step: what the server refuses is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mlops_ext.memory import Quantity
from mlops_ext.redaction import redacted

if TYPE_CHECKING:
    from zenml.models import StepRunResponse

__all__ = [
    "ATTEMPTS",
    "KILLED",
    "LIMIT",
    "ORCHESTRATOR",
    "PEAK",
    "AttemptRecord",
    "read",
    "record",
    "record_on_run",
    "record_orchestrator",
]

log = logging.getLogger(__name__)

ATTEMPTS = "memory_attempts"
"""Key of the list of attempts; on a run it is followed by a dot and the step's name."""
PEAK = "memory_peak"
LIMIT = "memory_limit"
KILLED = "killed for memory"
"""The outcome of an attempt that ran out of memory."""
ORCHESTRATOR = "orchestrator_memory"
"""Key on a run whose orchestrator's pod had too small a limit."""


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
    """

    number: int
    memory: Quantity | None
    peak: Quantity | None
    outcome: str
    reason: str = ""
    node: str = ""
    runtime_s: float = 0.0
    lost_s: float = 0.0

    @property
    def completed(self) -> bool:
        """Whether the step completed in this attempt."""
        return self.outcome == "completed"

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
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{found!r} is no recorded attempt") from error


def record(step_run_id: UUID, attempts: Sequence[AttemptRecord]) -> None:
    """Write *attempts*, all of the step so far, to its step run: one call of the API."""
    from zenml.enums import MetadataResourceTypes
    from zenml.metadata.metadata_types import StorageSize

    last = attempts[-1]
    values: dict[str, Any] = {ATTEMPTS: [attempt.dump() for attempt in attempts]}
    if last.peak is not None:
        values[PEAK] = StorageSize(last.peak)
    if last.memory is not None:
        values[LIMIT] = StorageSize(last.memory)
    _write(values, step_run_id, MetadataResourceTypes.STEP_RUN)


def record_on_run(run_id: UUID, step_name: str, attempts: Sequence[AttemptRecord]) -> None:
    """Write *attempts* to the pipeline run, where a step needed more than one: one call."""
    from zenml.enums import MetadataResourceTypes

    values = {f"{ATTEMPTS}.{step_name}": [attempt.dump() for attempt in attempts]}
    _write(values, run_id, MetadataResourceTypes.PIPELINE_RUN)


def record_orchestrator(run_id: UUID, values: Mapping[str, Any]) -> None:
    """Write to the pipeline run what the orchestrator's own pod lacked: one call."""
    from zenml.enums import MetadataResourceTypes

    _write({ORCHESTRATOR: dict(values)}, run_id, MetadataResourceTypes.PIPELINE_RUN)


def read(steps: Iterable[StepRunResponse]) -> dict[str, list[AttemptRecord]]:
    """The attempts by step, of hydrated step runs in the order of their creation."""
    found: dict[str, list[AttemptRecord]] = {}
    for step in steps:
        recorded: Any = step.run_metadata.get(ATTEMPTS)
        if isinstance(recorded, list):
            try:
                found[step.name] = [AttemptRecord.load(attempt) for attempt in recorded]
            except ValueError:
                log.warning("step %s has metadata %s of another kind", step.name, ATTEMPTS)
    return found


def _write(values: dict[str, Any], resource: UUID, kind: Any) -> None:
    from zenml.client import Client
    from zenml.models import RunMetadataResource

    try:
        Client().create_run_metadata(
            metadata=values, resources=[RunMetadataResource(id=resource, type=kind)]
        )
    except Exception as error:  # noqa: BLE001 - a server's hiccup must not fail a step that ran
        log.warning("the memory of a step's attempts could not be recorded: %s", redacted(error))


def _size(number: object) -> Quantity | None:
    return Quantity(int(str(number))) if number is not None else None
