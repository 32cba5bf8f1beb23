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
from dataclasses import dataclass
from typing import Any

_AT_FDCWD, _FORCE_SYNC = -100, 0x2000
_WANTED = 0x4 | 0x40 | 0x200  # link count, modification time, size
_SIZE_OF_STATX = 256
_LINKS, _SIZE, _MTIME = struct.Struct("<I"), struct.Struct("<Q"), struct.Struct("<qI")
_LINKS_AT, _SIZE_AT, _MTIME_AT = 16, 40, 112


@dataclass(frozen=True, slots=True)
class Fresh:
    """Link count, size and modification time of a file."""

    links: int
    size: int
    mtime: float


def _find(name: str, *arguments: Any) -> Any:
    """The function *name* of the C library, which returns an int; None where it is not Linux's."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):
        return None
    function.restype = ctypes.c_int
    function.argtypes = list(arguments)
    return function


_statx = _find("statx", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p)


def fresh_path(path: str) -> Fresh:
    """The attributes of *path*, from the server where the system can ask.

    Raises:
        OSError: as ``os.stat``.
    """
    if _statx is not None:
        room = ctypes.create_string_buffer(_SIZE_OF_STATX)
        if _statx(_AT_FDCWD, os.fsencode(path), _FORCE_SYNC, _WANTED, room) == 0:
            links, size = (
                _LINKS.unpack_from(room, _LINKS_AT)[0],
                _SIZE.unpack_from(room, _SIZE_AT)[0],
            )
            seconds, nanoseconds = _MTIME.unpack_from(room, _MTIME_AT)
            return Fresh(links, size, seconds + nanoseconds / 1e9)
    found = os.stat(path)  # noqa: PTH116  # a text
    return Fresh(found.st_nlink, found.st_size, found.st_mtime)
