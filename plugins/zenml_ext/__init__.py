"""Steps that survive out-of-memory kills, and temporary directories of one's choice, for ZenML."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlops_ext.lazy import lazy_exports

if TYPE_CHECKING:
    from zenml_ext.kubernetes.flavor import KubernetesOomFlavor, KubernetesOomStepOperatorFlavor
    from zenml_ext.kubernetes.settings import (
        KubernetesOomSettings,
        KubernetesOomStepOperatorSettings,
    )
    from zenml_ext.local.flavor import LocalOomFlavor
    from zenml_ext.local.settings import LocalOomSettings
    from zenml_ext.settings import TempDir
    from zenml_ext.temp_dir import set_temp_dir

__all__ = [
    "KubernetesOomFlavor",
    "KubernetesOomSettings",
    "KubernetesOomStepOperatorFlavor",
    "KubernetesOomStepOperatorSettings",
    "LocalOomFlavor",
    "LocalOomSettings",
    "TempDir",
    "set_temp_dir",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "KubernetesOomFlavor": "zenml_ext.kubernetes.flavor",
        "KubernetesOomSettings": "zenml_ext.kubernetes.settings",
        "KubernetesOomStepOperatorFlavor": "zenml_ext.kubernetes.flavor",
        "KubernetesOomStepOperatorSettings": "zenml_ext.kubernetes.settings",
        "LocalOomFlavor": "zenml_ext.local.flavor",
        "LocalOomSettings": "zenml_ext.local.settings",
        "TempDir": "zenml_ext.settings",
        "set_temp_dir": "zenml_ext.temp_dir",
    },
)
