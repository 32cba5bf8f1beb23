"""The entrypoint of a step that `local_oom` runs in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any

from zenml.steps import BaseStep

from mlops_ext import settings
from zenml_ext._limited import LIFELINE
from zenml_ext.adoption import AdoptingEntrypointConfiguration

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
        if settings.environment().get(RETRY_MEMORY_ERROR):
            _leave_on_memory_error()
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


def _leave_on_memory_error() -> None:
    """Let a MemoryError end the process before ZenML publishes the step as failed.

    A step run that is FAILED cannot be adopted; one that is left RUNNING can.
    """
    original = BaseStep.call_entrypoint

    def call_entrypoint(self: BaseStep, *args: Any, **kwargs: Any) -> Any:
        try:
            return original(self, *args, **kwargs)
        except MemoryError:
            log.exception("The step ran out of memory by itself.")
            sys.stderr.flush()
            os._exit(MEMORY_ERROR_EXIT)

    BaseStep.call_entrypoint = call_entrypoint  # type: ignore[method-assign]  # this process only
