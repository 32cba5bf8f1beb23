"""Files that several processes and hosts share: unique names, publishing, removal.

Each function says which guarantee of the file system it leans on. Platforms are never asked by
name: what a file system answers decides.
"""

from __future__ import annotations

from mlops_ext.files.names import TEMP_SUFFIX, liveness_of_maker, temp_name
from mlops_ext.files.publish import publish, sync_directory, write_new
from mlops_ext.files.reasons import RemovalError, RemovalReason, classify_removal_error
from mlops_ext.files.removal import Removal, empty, folder_below, remove

__all__ = [
    "TEMP_SUFFIX",
    "Removal",
    "RemovalError",
    "RemovalReason",
    "classify_removal_error",
    "empty",
    "folder_below",
    "liveness_of_maker",
    "publish",
    "remove",
    "sync_directory",
    "temp_name",
    "write_new",
]
