"""What can be set for the orchestrator ``kubernetes_oom``, and why each default is what it is."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, field_validator
from zenml.integrations.kubernetes.flavors.kubernetes_orchestrator_flavor import (
    KubernetesOrchestratorConfig,
    KubernetesOrchestratorSettings,
)

from zenml_ext.settings import OomSettings, checked_size


class KubernetesOomSettings(OomSettings, KubernetesOrchestratorSettings):
    """Settings of the flavor: the parent's, memory and temporary directory."""

    protect_orchestrator: bool = Field(
        default=True,
        description="Give the orchestrator's pod a memory request that equals its limit, so that a"
        " node that runs out of memory picks another pod. What orchestrator_pod_settings asks for"
        " is kept.",
    )
    orchestrator_memory: str | None = Field(
        default=None,
        description="Memory of the orchestrator's pod where orchestrator_pod_settings names"
        " none. Unset: 600Mi, twice what it used with ten steps; the pod of a dynamic pipeline,"
        " in which inline steps run, requests as much and has no limit.",
    )
    orchestrator_cpu: str = Field(
        default="500m",
        description="CPU request of the orchestrator's pod where orchestrator_pod_settings names"
        " none. It gets no CPU limit.",
    )
    pending_timeout_min: float | None = Field(
        default=None,
        gt=0,
        description="Minutes that a step may wait for a node with enough free memory; then it"
        " fails, and says so. Unset: as long as it takes. What no node can ever run fails"
        " anyhow, once an autoscaler has had a minute to look at it, where the orchestrator may"
        " list nodes.",
    )
    shm_size: str | None = Field(
        default=None,
        description="Size of /dev/shm, such as 2Gi, for data loaders with workers. It is memory,"
        " and counts against the step's limit. Unset: what the container runtime gives, 64Mi.",
    )
    orchestrator_job_backoff_limit: NonNegativeInt = Field(
        default=20,
        description="How often the orchestrator's pod may fail before its Job is given up. More"
        " than the parent's 3: a pod that goes on where the last one died costs little.",
    )

    @field_validator("shm_size", "orchestrator_memory")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        return checked_size(value)


class KubernetesOomConfig(KubernetesOrchestratorConfig, KubernetesOomSettings):
    """Configuration of the flavor."""

    mlops_ext_requirement: str | None = Field(
        default=None,
        description="What pip installs as mlops-ext in the images that ZenML builds: the URL of a"
        " wheel, or a git reference, such as mlops-ext[zenml] @ git+https://…. Unset:"
        " mlops-ext[zenml] in the version that is installed here, from the package index.",
    )
