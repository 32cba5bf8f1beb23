"""Files that several processes and hosts share: unique names, publishing, removal, probes.

Each function says which guarantee of the file system it leans on. Platforms are never asked by
name: `probe` finds what a directory's file system can do.
"""

from __future__ import annotations

from mlops_ext.files.names import (
    TEMP_SUFFIX,
    Liveness,
    TempName,
    own_boot,
    own_host,
    parse_temp_name,
    process_alive,
    temp_name,
)
from mlops_ext.files.probes import Capabilities, probe
from mlops_ext.files.publish import Durability, publish, sync_directory, write_new
from mlops_ext.files.removal import Held, Patience, Removal, classify_removal_error, remove

__all__ = [
    "TEMP_SUFFIX",
    "Capabilities",
    "Durability",
    "Held",
    "Liveness",
    "Patience",
    "Removal",
    "TempName",
    "classify_removal_error",
    "own_boot",
    "own_host",
    "parse_temp_name",
    "probe",
    "process_alive",
    "publish",
    "remove",
    "sync_directory",
    "temp_name",
    "write_new",
]
