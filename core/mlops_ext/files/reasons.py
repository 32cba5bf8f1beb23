"""Why an entry could not be removed: one set of reasons for the errors of POSIX and Windows."""

from __future__ import annotations

import enum
import errno
from pathlib import Path

from mlops_ext.errors import MlopsExtError

# https://learn.microsoft.com/windows/win32/debug/system-error-codes
_WINDOWS_ERRORS = {
    2: "gone",  # ERROR_FILE_NOT_FOUND
    3: "gone",  # ERROR_PATH_NOT_FOUND
    5: "denied",  # ERROR_ACCESS_DENIED: read-only, mapped, or marked for deletion
    32: "busy",  # ERROR_SHARING_VIOLATION: open elsewhere
    33: "busy",  # ERROR_LOCK_VIOLATION
    145: "not-empty",  # ERROR_DIR_NOT_EMPTY: a deleted entry lives until its last handle closes
    170: "busy",  # ERROR_BUSY
    303: "busy",  # ERROR_DELETE_PENDING
}
_POSIX_ERRORS = {
    errno.ENOENT: "gone",
    errno.ESTALE: "gone",  # NFS: another client removed it
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EBUSY: "busy",  # NFS silly-renamed, a mount point, or an open file on some FUSE mounts
    errno.ETXTBSY: "busy",
    errno.EXDEV: "mount point",  # from `sweep`: no system call here reports it
    errno.ENOTEMPTY: "not-empty",
    errno.EEXIST: "not-empty",  # POSIX lets rmdir answer with either
}


class RemovalReason(enum.Enum):
    """Why an entry is still there.

    BUSY: it is open. DENIED: permissions forbid it, or on Windows it is open without sharing.
    NOT_EMPTY: entries appear faster than they are removed, or an open one lingers. MOUNT: another
    file system begins here. OTHER: the file system reported something that waiting does not cure.
    """

    BUSY = "busy"
    DENIED = "denied"
    NOT_EMPTY = "not-empty"
    MOUNT = "mount point"
    OTHER = "other"


class RemovalError(MlopsExtError):
    """An entry that `remove` had to leave; collected in `Removal.left`, not raised.

    Attributes:
        path: the entry.
        reason: why it is still there.
        error: the last error that the file system reported.
    """

    def __init__(self, path: Path, reason: RemovalReason, error: OSError) -> None:
        self.path, self.reason, self.error = path, reason, error
        super().__init__(f"{path} could not be removed: {error.strerror or error}")


def classify_removal_error(error: OSError) -> RemovalReason | None:
    """Why a removal failed, from ``winerror`` if there is one, else from ``errno``.

    None means that the entry is gone, which is what was wanted.
    """
    code = getattr(error, "winerror", None)
    kind = _WINDOWS_ERRORS.get(code) if code else None
    if kind is None:
        kind = _POSIX_ERRORS.get(error.errno or 0, "other")
    return None if kind == "gone" else RemovalReason(kind)
