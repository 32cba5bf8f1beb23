"""Entries that do not fit one read: checked while they are read, or mapped."""

from __future__ import annotations

import contextlib
import enum
import errno
import hashlib
import hmac
import io
import mmap
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any

from joblib_ext.entries.entry import (
    HEADER,
    SIGNATURE,
    Header,
    hasher,
    is_foreign,
    parse_header,
    read_metadata,
)
from joblib_ext.entries.lease_record import LeaseRecord
from joblib_ext.entries.payload import Buffer, decompress, load_body, read_table
from joblib_ext.settings import CODECS

# Read and check by pieces that stay in the processor's cache between the two.
_CHUNK = 1 << 18
_ROW = 16


class CorruptEntryError(ValueError):
    """An entry does not verify."""


class SignatureError(CorruptEntryError):
    """The checksum of an entry is right, and its signature is not."""


class FileSource:
    """An open file, which is closed with this object."""

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        with contextlib.suppress(OSError):  # some file systems report an earlier write here
            os.close(self.descriptor)

    def fill(self, room: memoryview, position: int) -> int:
        """Read from the file."""
        return os.preadv(self.descriptor, [room], position)


class MemorySource:
    """The bytes of an entry, in memory."""

    __slots__ = ("_data",)
    descriptor = None

    def __init__(self, data: Buffer) -> None:
        self._data = memoryview(data)

    def fill(self, room: memoryview, position: int) -> int:
        """Copy."""
        part = self._data[position : position + len(room)]
        room[: len(part)] = part
        return len(part)


Source = FileSource | MemorySource


def _read(source: Source, length: int, position: int) -> bytes:
    room = bytearray(length)
    return bytes(room[: source.fill(memoryview(room), position)])


class LargeEntry:
    """An entry whose header fits its size; the rest is verified when it is loaded.

    Attributes:
        path: its name, for memory maps.
        header: its header.
        binding: what its checksum binds it to.
        key: the signing key, or None.
    """

    __slots__ = ("_source", "binding", "header", "key", "path")

    def __init__(
        self, source: Source, path: str, header: Header, binding: bytes, key: bytes | None
    ) -> None:
        self._source, self.path, self.header = source, path, header
        self.binding, self.key = binding, key

    def read(self, length: int, position: int) -> bytes:
        """Some bytes of it, not verified; fewer at its end."""
        return _read(self._source, length, position)

    def value(self) -> Any:
        """The value, verified before anything of it is unpickled.

        Raises:
            CorruptEntryError: it does not verify.
            Exception: whatever unpickling raises.
        """
        check, header, position = _Check(self, self._source), self.header, 0
        rows = self._table() if header.buffers and not header.codec else []
        parts = []
        for offset, length in [(0, rows[0][0] if rows else header.body), *rows]:
            check.skip(offset - position)
            parts.append(check.read(length))
            position = offset + length
        check.skip(header.body - position)
        check.finish()
        stream, *buffers = parts
        if header.codec:
            return load_body(decompress(stream, CODECS[header.codec], header.raw), header.buffers)
        return pickle.loads(stream, buffers=buffers)  # noqa: S301  # verified and, with a key, signed

    def _table(self) -> list[tuple[int, int]]:
        header = self.header
        length = min(header.buffers * _ROW, header.body)
        tail = self.read(length, HEADER.size + header.body - length)
        try:
            return read_table(tail, header.buffers, header.body)
        except ValueError as error:
            raise CorruptEntryError(f"{self.path}: {error}") from error

    def verify(self) -> dict[str, Any]:
        """What joblib noted of the call; every byte is checked, and none kept.

        Raises:
            CorruptEntryError: it does not verify.
            OSError: it cannot be read.
        """
        check = _Check(self, self._source)
        check.skip(self.header.body)
        return read_metadata(check.finish())

    metadata = verify

    def map(self, mode: str, *, verify: bool = True) -> Any:
        """The value with its arrays mapped from the file, as ``numpy.memmap``.

        What is unpickled was read once, into memory of our own. With *verify* it was checked there
        together with all the rest; without it nothing is checked. A "c" mapping may be written
        to; the file never changes.

        Raises:
            CorruptEntryError: it does not verify.
        """
        header = self.header
        descriptor = self._source.descriptor
        if header.codec or not header.buffers or descriptor is None:
            return self.value()
        rows = self._table()
        access = mmap.ACCESS_READ if mode == "r" else mmap.ACCESS_COPY
        try:
            mapped = mmap.mmap(descriptor, header.size, access=access)
        except ValueError as error:
            raise CorruptEntryError(f"{self.path}: shorter than it says") from error
        view = memoryview(mapped)[HEADER.size : HEADER.size + header.body]
        length = rows[0][0]
        if verify:
            check = _Check(self, self._source)
            stream = bytes(check.read(length))
            check.skip(header.body - length)
            check.finish()
        else:
            stream = self.read(length, HEADER.size)
        path = self.path if os.path.isabs(self.path) else os.path.abspath(self.path)  # noqa: PTH100, PTH117  # texts
        buffers = [view[at : at + size] for at, size in rows]
        return _MapUnpickler(stream, buffers, mapped, path, mode).load()


class Verdict(enum.Enum):
    """What a look at every byte of an entry came to."""

    GOOD = "it verifies"
    LEASE = "it is a lease"
    UNCHECKED = "another key or another installation is needed to check it"
    DAMAGED = "it does not verify"


def judge(source: Source, size: int, binding: bytes, key: bytes | None) -> Verdict:
    """What the entry of *size* bytes in *source* is.

    Raises:
        OSError: it cannot be read.
    """
    try:
        head = _read(source, HEADER.size, 0)
    except OSError as error:
        if error.errno in (errno.ESPIPE, errno.EISDIR):  # no file
            return Verdict.DAMAGED
        raise
    if is_foreign(head):
        return Verdict.UNCHECKED
    header = parse_header(head)
    if header is None or header.size != size:
        return Verdict.LEASE if LeaseRecord.parse(head) is not None else Verdict.DAMAGED
    try:
        LargeEntry(source, "", header, binding, (key or b"") if header.flags else None).verify()
    except SignatureError:  # the checksum is right: it was signed with another key
        return Verdict.UNCHECKED
    except CorruptEntryError:
        return Verdict.DAMAGED
    return Verdict.GOOD


class _Check:
    """Reads an entry from its first byte to its last, and checks on the way."""

    def __init__(self, entry: LargeEntry, source: Source) -> None:
        self._entry, self._source = entry, source
        self._position = HEADER.size
        head = entry.read(HEADER.size, 0)
        if head != HEADER.pack(*entry.header):
            raise CorruptEntryError(f"{entry.path}: changed since it was opened")
        key = entry.key
        self._hasher = hasher(entry.header.algorithm)
        self._mac = hmac.new(key, digestmod=hashlib.sha256) if key is not None else None
        self._hasher.update(entry.binding + head[:56])
        self._updates: list[Callable[[Any], object]] = [self._hasher.update]
        if self._mac is not None:
            self._mac.update(entry.binding + head)
            self._updates.append(self._mac.update)

    def read(self, length: int) -> memoryview:
        """The next *length* bytes, in memory of their own that may be written to."""
        view = allocate(length)
        self._fill(view)
        return view

    def skip(self, length: int) -> None:
        """Check the next *length* bytes without keeping them."""
        room = memoryview(bytearray(min(length, _CHUNK)))
        while length:
            part = room[: min(length, _CHUNK)]
            self._fill(part)
            length -= len(part)

    def _fill(self, view: memoryview) -> None:
        for start in range(0, len(view), _CHUNK):
            part = view[start : start + _CHUNK]
            done = 0
            while done < len(part):
                count = self._source.fill(part[done:], self._position)
                if not count:
                    raise CorruptEntryError(f"{self._entry.path}: shorter than it says")
                done += count
                self._position += count
            for update in self._updates:
                update(part)

    def finish(self) -> memoryview:
        """The metadata; it is checked, and the checksum and the signature.

        Raises:
            CorruptEntryError: one of them is not what it should be.
        """
        metadata = self.read(self._entry.header.metadata)
        if self._hasher.intdigest() != self._entry.header.checksum:
            raise CorruptEntryError(f"{self._entry.path}: the checksum does not match")
        if self._mac is not None:
            found = self._entry.read(SIGNATURE, self._position)
            if not hmac.compare_digest(found, self._mac.digest()):
                raise SignatureError(f"{self._entry.path}: the signature does not match")
        return metadata


def allocate(length: int) -> memoryview:
    """Writable memory; from numpy where it is loaded, which does not fill it with zeros first."""
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and length >= _CHUNK:
        return memoryview(numpy.empty(length, "uint8"))
    return memoryview(bytearray(length))


class _MapUnpickler(pickle.Unpickler):
    """Unpickles arrays as memory maps: numpy's constructor from a buffer is replaced by ours."""

    def __init__(
        self, stream: bytes, buffers: list[memoryview], mapped: mmap.mmap, path: str, mode: str
    ) -> None:
        super().__init__(io.BytesIO(stream), buffers=buffers)
        self._mapped, self._path, self._mode = mapped, path, mode

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if name != "_frombuffer" or not module.startswith("numpy."):
            return found
        numpy: Any = sys.modules["numpy"]

        def address(buffer: Any) -> int:
            return int(numpy.frombuffer(buffer, "u1").__array_interface__["data"][0])

        begin = address(self._mapped)

        def from_buffer(buffer: Any, dtype: Any, shape: Any, order: str, *rest: Any) -> Any:
            """The array as ``numpy.memmap`` would have made it."""
            if any(part is not None for part in rest):
                return found(buffer, dtype, shape, order, *rest)
            offset = address(buffer) - begin
            array = numpy.ndarray.__new__(
                numpy.memmap, shape, dtype, self._mapped, offset, order=order
            )
            array._mmap, array.offset = self._mapped, offset  # noqa: SLF001  # as memmap does
            array.mode, array.filename = self._mode, self._path
            return array

        return from_buffer
