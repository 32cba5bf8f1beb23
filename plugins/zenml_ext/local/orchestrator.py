"""The orchestrator of `local_oom`: each step in a process of its own, under a memory limit."""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast
from uuid import UUID, uuid4

from zenml.client import Client
from zenml.constants import ENV_ZENML_CUSTOM_SOURCE_ROOT, ENV_ZENML_DISABLE_DATABASE_MIGRATION
from zenml.enums import ExecutionMode, ExecutionStatus
from zenml.orchestrators import BaseOrchestrator, SubmissionResult
from zenml.utils import source_utils
from zenml.utils.env_utils import temporary_environment

from mlops_ext import settings as core_settings
from mlops_ext import tempdirs
from mlops_ext.memory import Caps
from zenml_ext.local.budget import MemoryBudget
from zenml_ext.local.dag import State
from zenml_ext.local.entrypoint import RUN_ID, SOURCE_ROOT
from zenml_ext.local.process import total_memory
from zenml_ext.local.run import LocalRun
from zenml_ext.local.settings import LocalOomConfig, LocalOomSettings
from zenml_ext.local.step import StepJob
from zenml_ext.memory.exits import RETRY_MEMORY_ERROR
from zenml_ext.memory.policy import StepFacts, features_of

if TYPE_CHECKING:
    from zenml.config.base_settings import BaseSettings
    from zenml.config.step_configurations import Step
    from zenml.config.step_run_info import StepRunInfo
    from zenml.models import PipelineRunResponse, PipelineSnapshotResponse, StepRunResponse
    from zenml.stack import Stack


class LocalOomOrchestrator(BaseOrchestrator):
    """Runs steps as processes of this machine, side by side where they do not depend."""

    _run_id: str | None = None

    @property
    def config(self) -> LocalOomConfig:
        """What was given at registration."""
        return cast("LocalOomConfig", self._config)

    @property
    def settings_class(self) -> type[BaseSettings]:
        """Settings for a pipeline or a step."""
        return LocalOomSettings

    @property
    def supported_execution_modes(self) -> list[ExecutionMode]:
        """All of ZenML's."""
        return list(ExecutionMode)

    def get_orchestrator_run_id(self) -> str:
        """The id of this run, the same in the orchestrator and in each step.

        Raises:
            RuntimeError: no run is active.
        """
        found = core_settings.environment().get(RUN_ID) or self._run_id
        if found is None:
            raise RuntimeError("No run of local_oom is active in this process.")
        return found

    def submit_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,  # noqa: ARG002  # upstream's signature
        base_environment: dict[str, str],  # noqa: ARG002  # upstream's signature
        step_environments: dict[str, dict[str, str]],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult | None:
        """Run the whole pipeline; returns when it has ended.

        Raises:
            RuntimeError: a step failed, or there is no run to belong to.
        """
        if placeholder_run is None:
            raise RuntimeError("local_oom runs no schedules: call the pipeline instead.")
        self._run_id = str(uuid4())
        try:
            LocalRun(
                snapshot=snapshot,
                run_id=placeholder_run.id,
                environments=step_environments,
                job=self._job,
                max_parallel=self.config.max_parallel_steps,
            ).to_end()
        finally:
            self._run_id = None
        return None

    def submit_dynamic_pipeline(
        self,
        snapshot: PipelineSnapshotResponse,
        stack: Stack,  # noqa: ARG002  # upstream's signature
        environment: dict[str, str],
        placeholder_run: PipelineRunResponse | None = None,
    ) -> SubmissionResult | None:
        """Run a dynamic pipeline here; its isolated steps get processes and limits of their own.

        A step is isolated where it says ``runtime="isolated"`` or names resources.
        """
        from zenml.execution.pipeline.dynamic.runner import DynamicPipelineRunner

        self._run_id = str(uuid4())
        try:
            with temporary_environment(environment):
                DynamicPipelineRunner(
                    snapshot=snapshot, run=placeholder_run, orchestrator=self
                ).run_pipeline()
        finally:
            self._run_id = None
        return None

    # Isolated steps of dynamic pipelines: submitted, asked for, stopped.

    def submit_isolated_step(self, step_run_info: StepRunInfo, environment: dict[str, str]) -> None:
        """Start an isolated step of a dynamic pipeline."""
        from zenml.config.step_configurations import Step

        job = self._job(
            name=step_run_info.pipeline_step_name,
            step=Step(
                spec=step_run_info.spec,
                config=step_run_info.config,
                step_config_overrides=step_run_info.config,
            ),
            snapshot=step_run_info.snapshot,
            run_id=step_run_info.run_id,
            environment=environment,
            stopping=threading.Event(),
            step_run_id=step_run_info.step_run_id,
        )

        def work() -> None:
            job.ended = job.run()

        thread = threading.Thread(target=work, name=f"step-{job.name}", daemon=True)
        thread.start()
        _isolated[step_run_info.step_run_id] = (job, thread)

    def get_isolated_step_status(self, step_run: StepRunResponse) -> ExecutionStatus:
        """The status of an isolated step that this process has started."""
        if step_run.id not in _isolated:
            status: ExecutionStatus = Client().get_run_step(step_run.id, hydrate=False).status
            return status
        job, thread = _isolated[step_run.id]
        if thread.is_alive():
            return ExecutionStatus.RUNNING
        has_ended = job.ended is not State.RUNNING  # else it could not be run at all
        return ExecutionStatus(job.ended.value) if has_ended else ExecutionStatus.FAILED

    def stop_isolated_step(self, step_run: StepRunResponse) -> None:
        """End an isolated step: SIGTERM, then SIGKILL."""
        if step_run.id in _isolated:
            _isolated[step_run.id][0].stopping.set()

    def cleanup_isolated_step(self, step_run: StepRunResponse) -> None:
        """Forget an isolated step that has ended."""
        _isolated.pop(step_run.id, None)

    def _stop_run_gracefully(self, pipeline_run: PipelineRunResponse) -> None:
        """Nothing to do: the process that runs it reads its status every two seconds."""

    def _stop_run_forcefully(self, pipeline_run: PipelineRunResponse) -> None:
        """As gracefully: what does not end by itself is killed after ``stop_grace_s``."""

    def _job(  # noqa: PLR0913 - all that a step is started with
        self,
        *,
        name: str,
        step: Step,
        snapshot: PipelineSnapshotResponse,
        run_id: UUID,
        environment: Mapping[str, str],
        stopping: threading.Event,
        budget: MemoryBudget | None = None,
        step_run_id: UUID | None = None,
    ) -> StepJob:
        """All that it takes to run *step*. Asks for the sizes of its inputs, so they must exist."""
        settings, total = cast("LocalOomSettings", self.get_settings(step)), total_memory()
        facts = StepFacts(
            name=name,
            pipeline=snapshot.pipeline_configuration.name,
            step=step,
            settings=settings,
            is_elsewhere=bool(step.config.step_operator),
        )
        features, policy = features_of(run_id, step), facts.policy
        caps = Caps(node=total, node_name="this machine", max_memory=facts.max_memory)
        return StepJob(
            name=name,
            facts=facts,
            snapshot_id=snapshot.id,
            run_id=run_id,
            environment=self._environment(settings, environment),
            policy=policy,
            plan=facts.plan(policy, features, caps),
            features=features,
            budget=budget or MemoryBudget(total),
            stopping=stopping,
            step_run_id=step_run_id,
        )

    def _environment(
        self, settings: LocalOomSettings, step_environment: Mapping[str, str]
    ) -> dict[str, str]:
        """The whole environment of a step's process."""
        root = source_utils.get_source_root()
        environment = {
            **core_settings.environment(),
            **step_environment,
            RUN_ID: self.get_orchestrator_run_id(),
            SOURCE_ROOT: root,
            ENV_ZENML_CUSTOM_SOURCE_ROOT: root,
            ENV_ZENML_DISABLE_DATABASE_MIGRATION: "true",  # this process has opened that store
        }
        if settings.retry_memory_error:
            environment[RETRY_MEMORY_ERROR] = "1"
        chosen = settings.temp_dir.path if settings.temp_dir else None
        configured = core_settings.load(core_settings.CoreSettings).temp_dir
        if chosen or configured:
            place = str(tempdirs.check_root(chosen or cast("Path", configured)))
            environment |= {"MLOPS_EXT_TEMP_DIR": place, "TMPDIR": place}
            if os.name == "nt":
                environment |= {"TEMP": place, "TMP": place}
        return environment


_isolated: dict[UUID, tuple[StepJob, threading.Thread]] = {}
