"""What can be set for the orchestrator ``local_oom``, and why each default is what it is."""

from __future__ import annotations

from pydantic import Field
from zenml.config.base_settings import BaseSettings
from zenml.orchestrators import BaseOrchestratorConfig

from zenml_ext.settings import OomSettings


class LocalOomSettings(OomSettings, BaseSettings):
    """Settings of `local_oom`, for a pipeline or a step."""

    kernel_limit: bool = True
    """Let the kernel enforce memory limits through a cgroup where this process may make one. Where
    it may not, or this is off, the orchestrator watches the memory of the step's processes and
    kills them itself."""
    stop_grace_s: float = Field(default=15.0, ge=0)
    """Seconds between SIGTERM and SIGKILL when a run is stopped."""


class LocalOomConfig(BaseOrchestratorConfig, LocalOomSettings):
    """Configuration of `local_oom`: the defaults of its settings, and what concerns a run."""

    max_parallel_steps: int | None = Field(default=None, ge=1)
    """Steps that run side by side at most. Unset: as many as there are CPUs, and never more than
    fit into memory with their limits."""

    @property
    def is_local(self) -> bool:
        """Everything happens on this machine."""
        return True

    @property
    def is_synchronous(self) -> bool:
        """The call of a pipeline returns when the run has ended."""
        return True

    @property
    def handles_step_retries(self) -> bool:
        """The user's own retries are counted here too, each in a fresh process."""
        return True
