"""Opening what holds an entry: a file of the shared store, of a node's own cache, or an object.

The one reader of entries: whatever they are read from, the same checks decide what they are.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

from joblib_ext.entries.entry import HEADER, Entry, open_small, parse_header
from joblib_ext.entries.large_entry import FileSource, LargeEntry, MemorySource, Source
from joblib_ext.entries.lease_record import LeaseRecord

# One read brings an entry up to this size; most are far below.
SMALL = 1 << 16
READ = os.O_RDONLY
for _flag in ("O_CLOEXEC", "O_BINARY", "O_NONBLOCK"):  # a FIFO would be waited for forever
    READ |= getattr(os, _flag, 0)


def read_file(
    path: str, binding: bytes, key: bytes | None, *, mapped: bool = False
) -> tuple[Entry | LargeEntry | LeaseRecord | None, bytes]:
    """What is valid in the file at *path*, and its first bytes; one open, and mostly one read.

    Args:
        path: the file.
        binding: what the checksum of an entry binds it to.
        key: the signing key, or None.
        mapped: whether a small entry with buffers is wanted as a file, to be mapped.

    Raises:
        OSError: it could not be read.
    """
    descriptor = os.open(path, READ)
    source = None
    try:
        data = os.read(descriptor, SMALL)
        if len(data) < SMALL:
            entry = open_small(data, binding, key)
            if entry is not None and mapped and entry.header.buffers:
                source = FileSource(descriptor)
                return LargeEntry(source, path, entry.header, binding, key), data
            return entry or LeaseRecord.parse(data), data
        size = os.fstat(descriptor).st_size
        source = FileSource(descriptor)
        return open_large(source, size, path, binding, data, key), data
    finally:
        if source is None:
            close(descriptor)


def open_large(
    source: Source, size: int, path: str, binding: bytes, data: bytes, key: bytes | None
) -> LargeEntry | None:
    """The large entry of *size* bytes that *source* holds, and that begins with *data*."""
    header = parse_header(data)
    if header is None or size != header.size or bool(header.flags) is not (key is not None):
        return None
    return LargeEntry(source, path, header, binding, key)


def open_bytes(
    data: Any, tag: Any, path: str, binding: bytes, key: bytes | None
) -> Entry | LargeEntry | LeaseRecord | None:
    """What is valid in the bytes of a whole object."""
    if len(data) < SMALL:
        data = bytes(data)
        return open_small(data, binding, key) or LeaseRecord.parse(data, tag)
    head = bytes(memoryview(data)[: HEADER.size])
    return open_large(MemorySource(data), len(data), path, binding, head, key)


def read_head(path: str, size: int = HEADER.size) -> bytes:
    """The first bytes of a file, as many as a header or a lease has; none if it cannot be read."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, READ)
        try:
            return os.read(descriptor, size)
        finally:
            close(descriptor)
    return b""


def close(descriptor: int) -> None:
    """Close after reading: some file systems report there what an earlier write met."""
    with contextlib.suppress(OSError):
        os.close(descriptor)
