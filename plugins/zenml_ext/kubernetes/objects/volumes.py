"""A `TempDir` as a volume, a mount and TMPDIR of a pod. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zenml_ext.settings import TempDir

VOLUME_NAME = "mlops-ext-temp"


def temp_dir_parts(temp_dir: TempDir) -> Mapping[str, list[dict[str, Any]]]:
    """What pod settings get for *temp_dir*: their fields ``volumes``, ``volume_mounts``, ``env``.

    A path without a volume is the image's own: TMPDIR alone.
    """
    env = [{"name": name, "value": temp_dir.path} for name in ("TMPDIR", "MLOPS_EXT_TEMP_DIR")]
    source = _source(temp_dir)
    if source is None:
        return {"volumes": [], "volume_mounts": [], "env": env}
    return {
        "volumes": [{"name": VOLUME_NAME, **source}],
        "volume_mounts": [{"name": VOLUME_NAME, "mountPath": temp_dir.path}],
        "env": env,
    }


def _source(temp_dir: TempDir) -> dict[str, Any] | None:
    if temp_dir.volume == "emptyDir":
        options = {"sizeLimit": temp_dir.size_limit, "medium": temp_dir.medium}
        return {"emptyDir": {key: value for key, value in options.items() if value}}
    if temp_dir.volume == "ephemeral":
        spec: dict[str, Any] = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": temp_dir.size_limit}},
        }
        if temp_dir.storage_class:
            spec["storageClassName"] = temp_dir.storage_class
        return {"ephemeral": {"volumeClaimTemplate": {"spec": spec}}}
    if temp_dir.volume == "claim":
        return {"persistentVolumeClaim": {"claimName": temp_dir.claim_name}}
    if temp_dir.volume == "hostPath":
        return {"hostPath": {"path": temp_dir.host_path, "type": "DirectoryOrCreate"}}
    return None
