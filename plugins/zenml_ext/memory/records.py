"""A step's attempts as metadata of the step run and of the pipeline run.

The dashboard shows them, ``mlops-ext zenml memory`` reads them back. Recording never fails a
step: what the server refuses is logged.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mlops_ext.redaction import redacted
from zenml_ext.memory.attempts import AttemptRecord

if TYPE_CHECKING:
    from zenml.models import StepRunResponse

log = logging.getLogger(__name__)

ATTEMPTS = "memory_attempts"
"""Key of the list of attempts; on a run it is followed by a dot and the step's name."""
PEAK = "memory_peak"
LIMIT = "memory_limit"
ORCHESTRATOR = "orchestrator_memory"
"""Key on a run whose orchestrator's pod had too small a limit."""


def record(step_run_id: UUID, attempts: Sequence[AttemptRecord]) -> None:
    """Write *attempts*, all of the step so far, to its step run: one call of the API."""
    _write(metadata_of(attempts), step_run_id, "step_run")


def metadata_of(attempts: Sequence[AttemptRecord]) -> dict[str, Any]:
    """*attempts*, all of a step so far, as metadata of its step run."""
    from zenml.metadata.metadata_types import StorageSize

    last = attempts[-1]
    values: dict[str, Any] = {ATTEMPTS: [attempt.dump() for attempt in attempts]}
    if last.peak is not None:
        values[PEAK] = StorageSize(last.peak)
    if last.memory is not None:
        values[LIMIT] = StorageSize(last.memory)
    return values


def record_on_run(run_id: UUID, step_name: str, attempts: Sequence[AttemptRecord]) -> None:
    """Write *attempts* to the pipeline run, where a step needed more than one: one call."""
    key = f"{ATTEMPTS}.{step_name}".replace(":", ".")  # as in map:train:0; ZenML takes no colon
    values = {key: [attempt.dump() for attempt in attempts]}
    _write(values, run_id, "pipeline_run")


def record_orchestrator(run_id: UUID, values: Mapping[str, Any]) -> None:
    """Write to the pipeline run what the orchestrator's own pod lacked: one call."""
    _write({ORCHESTRATOR: dict(values)}, run_id, "pipeline_run")


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


def _write(values: dict[str, Any], resource: UUID, kind: str) -> None:
    from zenml.client import Client
    from zenml.enums import MetadataResourceTypes
    from zenml.models import RunMetadataResource

    try:
        Client().create_run_metadata(
            metadata=values,
            resources=[RunMetadataResource(id=resource, type=MetadataResourceTypes(kind))],
        )
    except Exception as error:  # noqa: BLE001 - a server's hiccup must not fail a step that ran
        log.warning("the memory of a step's attempts could not be recorded: %s", redacted(error))
