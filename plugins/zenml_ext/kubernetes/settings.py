"""What can be set for ``kubernetes_oom``, orchestrator and step operator, and why by default so."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, NonNegativeInt
from zenml.integrations.kubernetes.flavors.kubernetes_orchestrator_flavor import (
    KubernetesOrchestratorConfig,
    KubernetesOrchestratorSettings,
)
from zenml.integrations.kubernetes.flavors.kubernetes_step_operator_flavor import (
    KubernetesStepOperatorConfig,
    KubernetesStepOperatorSettings,
)

from zenml_ext.settings import OomSettings, Size


class KubernetesSettings(OomSettings):
    """What orchestrator and step operator share: memory, shared memory, temporary directory."""

    shm_size: Size | None = None
    """Size of /dev/shm, such as 2Gi, for data loaders with workers. It is memory, and counts
    against the step's limit. Unset: what the container runtime gives, 64Mi."""


class _Image(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    mlops_ext_requirement: str | None = None
    """What pip installs as mlops-ext in the images that ZenML builds: the URL of a wheel, or a git
    reference, such as mlops-ext[zenml] @ git+https://…. Unset: mlops-ext[zenml] in the version that
    is installed here, from the package index."""


class KubernetesOomStepOperatorSettings(KubernetesSettings, KubernetesStepOperatorSettings):
    """Settings of the step operator: the parent's, memory and temporary directory."""


class KubernetesOomStepOperatorConfig(
    KubernetesStepOperatorConfig, KubernetesOomStepOperatorSettings, _Image
):
    """Configuration of the step operator."""


class KubernetesOomSettings(KubernetesSettings, KubernetesOrchestratorSettings):
    """Settings of the orchestrator: the parent's, memory and temporary directory."""

    protect_orchestrator: bool = True
    """Give the orchestrator's pod a memory request that equals its limit, so that a node that runs
    out of memory picks another pod. What orchestrator_pod_settings asks for is kept."""
    orchestrator_memory: Size | None = None
    """Memory of the orchestrator's pod where orchestrator_pod_settings names none. Unset: 600Mi,
    twice what it used with ten steps; the pod of a dynamic pipeline, in which inline steps run,
    requests as much and has no limit."""
    orchestrator_job_backoff_limit: NonNegativeInt = 20
    """How often the orchestrator's pod may fail before its Job is given up. More than the parent's
    3: a pod that goes on where the last one died costs little."""


class KubernetesOomConfig(KubernetesOrchestratorConfig, KubernetesOomSettings, _Image):
    """Configuration of the orchestrator."""
