"""What Python cannot ask a file system: attributes past a client's cache.

Network file systems answer ``stat`` from a cache for seconds. Linux offers ``statx`` with
``AT_STATX_FORCE_SYNC``, which asks the server and renews the cache on the way; Python does not
offer it yet.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from typing import Any

_AT_FDCWD, _FORCE_SYNC = -100, 0x2000
_WANTED = 0x40 | 0x200  # modification time, size
_SIZE_OF_STATX = 256
_MTIME, _MTIME_AT = struct.Struct("<qI"), 112


def _find_statx() -> Any:
    """The C library's function; None where the system is not Linux."""
    try:
        found = ctypes.CDLL(None, use_errno=True).statx if sys.platform == "linux" else None
    except (OSError, AttributeError):
        return None
    if found is not None:
        text, number = ctypes.c_char_p, ctypes.c_int
        found.argtypes = [number, text, number, ctypes.c_uint, ctypes.c_void_p]
    return found


_statx = _find_statx()


def fresh_mtime(path: str) -> float:
    """When *path* was changed, in seconds since the epoch, from the server if that can be asked.

    A client that asks drops what it knew of size and time.

    Raises:
        OSError: as ``os.stat``.
    """
    if _statx is not None:
        room = ctypes.create_string_buffer(_SIZE_OF_STATX)
        if _statx(_AT_FDCWD, os.fsencode(path), _FORCE_SYNC, _WANTED, room) == 0:
            seconds, nanoseconds = _MTIME.unpack_from(room, _MTIME_AT)
            return float(seconds + nanoseconds / 1e9)
    return os.stat(path).st_mtime  # noqa: PTH116  # a text
