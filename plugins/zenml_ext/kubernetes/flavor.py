"""The flavor ``kubernetes_oom``: ZenML's Kubernetes orchestrator that survives out-of-memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenml.integrations.kubernetes.flavors.kubernetes_orchestrator_flavor import (
    KubernetesOrchestratorFlavor,
)

from zenml_ext.kubernetes.settings import KubernetesOomConfig

if TYPE_CHECKING:
    from zenml_ext.kubernetes.orchestrator import KubernetesOomOrchestrator

KUBERNETES_OOM = "kubernetes_oom"


class KubernetesOomFlavor(KubernetesOrchestratorFlavor):
    """Flavor of `zenml_ext.kubernetes.orchestrator.KubernetesOomOrchestrator`."""

    @property
    def name(self) -> str:
        """Name of the flavor."""
        return KUBERNETES_OOM

    @property
    def display_name(self) -> str:
        """Name in the dashboard."""
        return "Kubernetes (out-of-memory retries)"

    @property
    def docs_url(self) -> str | None:
        """None: ZenML has no page for it."""
        return None

    @property
    def sdk_docs_url(self) -> str | None:
        """None: ZenML has no page for it."""
        return None

    @property
    def config_class(self) -> type[KubernetesOomConfig]:
        """The configuration class."""
        return KubernetesOomConfig

    @property
    def implementation_class(self) -> type[KubernetesOomOrchestrator]:
        """The orchestrator's class, imported when it is needed."""
        from zenml_ext.kubernetes.orchestrator import KubernetesOomOrchestrator

        return KubernetesOomOrchestrator
