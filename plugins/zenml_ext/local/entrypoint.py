"""The entrypoint of a step that `local_oom` runs in a process of its own."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from zenml.constants import ENV_ZENML_DISABLE_DATABASE_MIGRATION
from zenml.utils.env_utils import temporary_environment

from mlops_ext import settings
from zenml_ext.entrypoint import ResumingEntrypointConfiguration
from zenml_ext.local.process import GROUP, PARENT_PIPE
from zenml_ext.memory import exits
from zenml_ext.memory.cgroup import MemoryCgroup
from zenml_ext.processes import LOCAL_STEP, patch_own_process

if TYPE_CHECKING:
    from zenml.config.step_configurations import Step
    from zenml.models import PipelineSnapshotResponse

log = logging.getLogger(__name__)

RUN_ID = "MLOPS_EXT_LOCAL_RUN_ID"
SOURCE_ROOT = "MLOPS_EXT_SOURCE_ROOT"


class LocalEntrypoint(ResumingEntrypointConfiguration):
    """Runs or resumes a step on the machine, and in the directory, of the client."""

    def prepare_code_environment(self) -> None:
        """Make the user's modules importable; the code is here already."""
        root = settings.environment().get(SOURCE_ROOT)
        for place in filter(None, (os.getcwd(), root)):  # noqa: PTH109  # sys.path takes texts
            if place not in sys.path:
                sys.path.insert(0, place)

    def _run_step(self, step: Step, snapshot: PipelineSnapshotResponse) -> None:
        _end_with_the_orchestrator()
        patch_own_process(LOCAL_STEP)
        # The store is open by now; what the step's code starts may have a store of its own.
        with temporary_environment({ENV_ZENML_DISABLE_DATABASE_MIGRATION: "false"}):
            super()._run_step(step=step, snapshot=snapshot)


def _end_with_the_orchestrator() -> None:
    """End this process and its children as soon as the orchestrator's process is gone."""
    descriptor = int(settings.environment().get(PARENT_PIPE, "-1"))
    if descriptor < 0:
        return

    def wait() -> None:
        try:
            os.read(descriptor, 1)
        except OSError:
            return
        log.error("The orchestrator is gone: the step ends.")
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, name="mlops-ext-parent-pipe", daemon=True).start()


def leave_if_memory_is_the_cause(error: BaseException | None) -> None:
    """End unpublished if memory caused *error*, as when a worker of a data loader was killed."""
    exits.leave_if_memory_is_the_cause(error, _children_killed(), exits.leave)


def _children_killed() -> int:
    version, _, path = settings.environment().get(GROUP, "").partition(":")
    return MemoryCgroup(path=Path(path), version=int(version)).kills() if path else 0
