"""A `TempDir`, and a /dev/shm, as volumes and mounts of a pod. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zenml_ext.settings import TempDir

VOLUME_NAME = "mlops-ext-temp"


Parts = Mapping[str, list[dict[str, Any]]]
_NOTHING: Parts = {"volumes": [], "volume_mounts": [], "env": []}


def shm_parts(size: str | None) -> Parts:
    """What pod settings get for a /dev/shm of *size*; it counts as memory of the step."""
    if size is None:
        return _NOTHING
    volume = {"name": "mlops-ext-shm", "emptyDir": {"medium": "Memory", "sizeLimit": size}}
    mount = {"name": "mlops-ext-shm", "mountPath": "/dev/shm"}  # noqa: S108 - the place itself
    return {"volumes": [volume], "volume_mounts": [mount], "env": []}


def temp_dir_parts(temp_dir: TempDir | None) -> Parts:
    """What pod settings get for *temp_dir*: their fields ``volumes``, ``volume_mounts``, ``env``.

    A path without a volume is the image's own: TMPDIR alone.
    """
    if temp_dir is None:
        return _NOTHING
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
    options = {"sizeLimit": temp_dir.size_limit, "medium": temp_dir.medium}
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteOnce"],
        "resources": {"requests": {"storage": temp_dir.size_limit}},
        **({"storageClassName": temp_dir.storage_class} if temp_dir.storage_class else {}),
    }
    kinds: Mapping[str | None, dict[str, Any]] = {
        "emptyDir": {"emptyDir": {key: value for key, value in options.items() if value}},
        "ephemeral": {"ephemeral": {"volumeClaimTemplate": {"spec": spec}}},
        "claim": {"persistentVolumeClaim": {"claimName": temp_dir.claim_name}},
        "hostPath": {"hostPath": {"path": temp_dir.host_path, "type": "DirectoryOrCreate"}},
    }
    return kinds.get(temp_dir.volume)
