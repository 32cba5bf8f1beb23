"""Opening a file that holds an entry: in the shared store, and in a node's own cache of it."""

from __future__ import annotations

import contextlib
import os

from joblib_ext.entries.entry import parse_header
from joblib_ext.entries.large_entry import LargeEntry

SMALL = 1 << 16
"""One read brings an entry up to this size; most are far below."""
READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_large(
    descriptor: int, path: str, binding: bytes, data: bytes, key: bytes | None
) -> LargeEntry | None:
    """The large entry that *descriptor* is open on; otherwise the descriptor is closed.

    Args:
        descriptor: of the open file.
        path: where it stands.
        binding: what its checksum binds it to.
        data: its first bytes.
        key: the signing key, or None.
    """
    header = parse_header(data)
    try:
        good = (
            header is not None
            and os.fstat(descriptor).st_size == header.size
            and header.signed == (key is not None)
        )
    except OSError:
        good = False
    if header is None or not good:
        close(descriptor)
        return None
    return LargeEntry(descriptor, path, header, binding, key)


def close(descriptor: int) -> None:
    """Close after reading: some file systems report there what an earlier write met."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
