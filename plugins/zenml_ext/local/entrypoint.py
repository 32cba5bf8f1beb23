"""The entrypoint of a step that `local_oom` runs in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zenml.steps import BaseStep

from mlops_ext import settings
from zenml_ext.entrypoint import AdoptingEntrypointConfiguration
from zenml_ext.local.process import GROUP, LIFELINE
from zenml_ext.memory.cgroup import MemoryGroup

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step
    from zenml.models import PipelineSnapshotResponse

__all__ = ["MEMORY_ERROR_EXIT", "RETRY_MEMORY_ERROR", "RUN_ID", "SOURCE_ROOT", "LocalEntrypoint"]

log = logging.getLogger(__name__)

RUN_ID = "MLOPS_EXT_LOCAL_RUN_ID"
SOURCE_ROOT = "MLOPS_EXT_SOURCE_ROOT"
RETRY_MEMORY_ERROR = "MLOPS_EXT_RETRY_MEMORY_ERROR"
MEMORY_ERROR_EXIT = 122
"""Exit code of a step that ended in a MemoryError which is to be retried. Free of other meaning:
shells use 126 and up, sysexits.h 64 to 78."""
_KILLED = 137
"""As a shell reports signal 9: the orchestrator finds the kill counted in the cgroup."""


class LocalEntrypoint(AdoptingEntrypointConfiguration):
    """Runs or adopts a step on the machine, and in the directory, of the client."""

    def prepare_code_environment(self) -> None:
        """Make the user's modules importable; the code is here already."""
        root = settings.environment().get(SOURCE_ROOT)
        for place in filter(None, (os.getcwd(), root)):  # noqa: PTH109  # sys.path takes texts
            if place not in sys.path:
                sys.path.insert(0, place)

    def _run_step(self, step: Step, snapshot: PipelineSnapshotResponse) -> None:
        _end_with_the_orchestrator()
        _leave_for_want_of_memory(
            memory_errors=bool(settings.environment().get(RETRY_MEMORY_ERROR))
        )
        super()._run_step(step=step, snapshot=snapshot)


def _end_with_the_orchestrator() -> None:
    """End this process and its children as soon as the orchestrator's process is gone."""
    descriptor = int(settings.environment().get(LIFELINE, "-1"))
    if descriptor < 0:
        return

    def wait() -> None:
        try:
            os.read(descriptor, 1)
        except OSError:
            return
        log.error("The orchestrator is gone: the step ends.")
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, name="mlops-ext-lifeline", daemon=True).start()


def _leave_for_want_of_memory(*, memory_errors: bool) -> None:
    """Let what memory brought down end the process before ZenML publishes the step as failed.

    A step run that is FAILED cannot be adopted; one that is left RUNNING can. That concerns a
    step that fails because one of its children was killed (a worker of a data loader), and,
    where the user wants it, a MemoryError.
    """
    original = BaseStep.call_entrypoint

    def call_entrypoint(self: BaseStep, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        except Exception as error:
            if _children_killed():
                log.exception("The step failed after a process of it was killed for memory.")
                _leave(_KILLED)
            if memory_errors and isinstance(error, MemoryError):
                log.exception("The step ran out of memory by itself.")
                _leave(MEMORY_ERROR_EXIT)
            raise

    BaseStep.call_entrypoint = call_entrypoint  # type: ignore[method-assign]  # this process only


def _children_killed() -> int:
    version, _, path = settings.environment().get(GROUP, "").partition(":")
    return MemoryGroup(path=Path(path), version=int(version)).kills() if path else 0


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
