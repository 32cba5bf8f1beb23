"""What can be set for the orchestrator ``kubernetes_oom``, and why each default is what it is."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt
from zenml.integrations.kubernetes.flavors.kubernetes_orchestrator_flavor import (
    KubernetesOrchestratorConfig,
    KubernetesOrchestratorSettings,
)

from zenml_ext.settings import OomSettings


class KubernetesOomSettings(OomSettings, KubernetesOrchestratorSettings):
    """Settings of the flavor: the parent's, memory and temporary directory."""

    protect_orchestrator: bool = Field(
        default=True,
        description="Give the orchestrator's pod a request that equals its limit, for memory and"
        " CPU, so that a node that runs out of memory never picks it (QoS class Guaranteed)."
        " What orchestrator_pod_settings asks for is kept.",
    )
    orchestrator_memory: str = Field(
        default="600Mi",
        description="Memory of the orchestrator's pod where orchestrator_pod_settings names"
        " none. It used about 300Mi with ten steps.",
    )
    orchestrator_cpu: str = Field(
        default="500m",
        description="CPU of the orchestrator's pod where orchestrator_pod_settings names none.",
    )
    pending_timeout_min: float = Field(
        default=10.0,
        gt=0,
        description="Where the orchestrator may not list nodes: minutes a step waits for a node"
        " with enough free memory while nothing else of the namespace runs; then it fails, and"
        " says so. Where it may list them, what can never fit fails at once, and the rest waits.",
    )
    orchestrator_job_backoff_limit: NonNegativeInt = Field(
        default=20,
        description="How often the orchestrator's pod may fail before its Job is given up. More"
        " than the parent's 3: a pod that goes on where the last one died costs little.",
    )


class KubernetesOomConfig(KubernetesOrchestratorConfig, KubernetesOomSettings):
    """Configuration of the flavor."""

    mlops_ext_requirement: str | None = Field(
        default=None,
        description="What pip installs as mlops-ext in the images that ZenML builds: the URL of a"
        " wheel, or a git reference, such as mlops-ext[zenml] @ git+https://…. Unset:"
        " mlops-ext[zenml] in the version that is installed here, from the package index.",
    )
