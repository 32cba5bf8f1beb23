"""The entrypoint of the pod in which a dynamic pipeline, and each inline step of it, runs."""

from __future__ import annotations

from zenml.pipelines.dynamic.entrypoint_configuration import DynamicPipelineEntrypointConfiguration

from zenml_ext.kubernetes.supervisor.own_memory import OrchestratorMemory
from zenml_ext.processes import DYNAMIC_POD, patch_own_process


class DynamicEntrypointConfiguration(DynamicPipelineEntrypointConfiguration):
    """ZenML's own, with its memory watched, and patient with a server that is away."""

    def run(self) -> None:
        """Run the pipeline."""
        patch_own_process(DYNAMIC_POD)
        with OrchestratorMemory(run_id=self.entrypoint_args.get("run_id")):
            super().run()
