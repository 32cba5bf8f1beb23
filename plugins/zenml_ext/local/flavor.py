"""The flavor `local_oom`: each step in a process of its own, under a memory limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenml.orchestrators import BaseOrchestratorFlavor

from zenml_ext.local.settings import LocalOomConfig

if TYPE_CHECKING:
    from zenml_ext.local.orchestrator import LocalOomOrchestrator


class LocalOomFlavor(BaseOrchestratorFlavor):
    """Local steps that survive out-of-memory kills; needs neither cluster nor Docker."""

    @property
    def name(self) -> str:
        """What to type after ``--flavor``."""
        return "local_oom"

    @property
    def display_name(self) -> str:
        """What the dashboard shows."""
        return "Local, out-of-memory safe"

    @property
    def config_class(self) -> type[LocalOomConfig]:
        """What can be given at registration."""
        return LocalOomConfig

    @property
    def implementation_class(self) -> type[LocalOomOrchestrator]:
        """The orchestrator; imported when it is needed."""
        from zenml_ext.local.orchestrator import LocalOomOrchestrator

        return LocalOomOrchestrator
