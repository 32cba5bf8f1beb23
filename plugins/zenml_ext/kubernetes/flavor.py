"""The flavors ``kubernetes_oom``: ZenML's own on Kubernetes, that survive out-of-memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zenml.integrations.kubernetes.flavors.kubernetes_orchestrator_flavor import (
    KubernetesOrchestratorFlavor,
)
from zenml.integrations.kubernetes.flavors.kubernetes_step_operator_flavor import (
    KubernetesStepOperatorFlavor,
)
from zenml.stack import Flavor

from zenml_ext.kubernetes.settings import KubernetesOomConfig, KubernetesOomStepOperatorConfig

if TYPE_CHECKING:
    from zenml_ext.kubernetes.orchestrator import KubernetesOomOrchestrator
    from zenml_ext.kubernetes.step_operator import KubernetesOomStepOperator

KUBERNETES_OOM = "kubernetes_oom"


class _KubernetesOom(Flavor):
    @property
    def name(self) -> str:
        """Name of the flavor."""
        return KUBERNETES_OOM

    @property
    def display_name(self) -> str:
        """Name in the dashboard."""
        return "Kubernetes (out-of-memory retries)"

    @property
    def docs_url(self) -> None:
        """None: ZenML has no page for it."""

    @property
    def sdk_docs_url(self) -> None:
        """None, as above."""


class KubernetesOomFlavor(_KubernetesOom, KubernetesOrchestratorFlavor):
    """Flavor of `zenml_ext.kubernetes.orchestrator.KubernetesOomOrchestrator`."""

    @property
    def config_class(self) -> type[KubernetesOomConfig]:
        """The configuration class."""
        return KubernetesOomConfig

    @property
    def implementation_class(self) -> type[KubernetesOomOrchestrator]:
        """The orchestrator's class, imported when it is needed."""
        from zenml_ext.kubernetes.orchestrator import KubernetesOomOrchestrator

        return KubernetesOomOrchestrator


class KubernetesOomStepOperatorFlavor(_KubernetesOom, KubernetesStepOperatorFlavor):
    """Flavor of `zenml_ext.kubernetes.step_operator.KubernetesOomStepOperator`."""

    @property
    def config_class(self) -> type[KubernetesOomStepOperatorConfig]:
        """The configuration class."""
        return KubernetesOomStepOperatorConfig

    @property
    def implementation_class(self) -> type[KubernetesOomStepOperator]:
        """The step operator's class, imported when it is needed."""
        from zenml_ext.kubernetes.step_operator import KubernetesOomStepOperator

        return KubernetesOomStepOperator
