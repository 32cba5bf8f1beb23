"""The format of an entry: one immutable file that proves itself.

    offset  bytes  what
         0      8  magic
         8      2  version of the format, 1
        10      1  checksum: 1 crc32, 2 xxh3-64
        11      1  compressor, an index into `CODECS`
        12      4  flags: bit 0, signed
        16      8  length of the body as stored
        24      8  length of the body before compression
        32      4  length of the metadata
        36      4  number of out-of-band buffers in the body
        40      8  token: random, another one in each writing
        48      8  reserved, zero
        56      8  checksum of the binding, bytes 0 to 55, the body and the metadata
        64         body, see `_payload`
                   metadata: JSON in UTF-8
                   32 bytes HMAC-SHA256 of the binding and all the above, where signed

Numbers are little-endian. The binding (function, namespace, arguments) is not stored; it is part
of what is checked, so that an entry under another name does not verify.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from joblib_ext.entries.payload import Buffer, compress, decompress, load_body, total
from joblib_ext.settings import CODECS

xxhash: Any
try:
    import xxhash
except ImportError:
    xxhash = None  # optional: crc32 takes its place

# A byte above 127 and both line ends: text-mode copies and seven-bit channels show at once.
MAGIC = b"\x93MXJOB\r\n"
VERSION = 1
HEADER = struct.Struct("<8sHBBIQQII8s8sQ")
SIGNATURE = 32
_UNCHECKED = 56
_RESERVED = bytes(8)
_CRC32, _XXH3 = 1, 2
_ALGORITHMS = (_CRC32, _XXH3) if xxhash is not None else (_CRC32,)
# Below, pieces are joined to be checked: a copy costs less than a call for each.
_JOINED = 1 << 14
_SIGNED = 1
_KIND = struct.Struct("<8sHBBI")
# How an entry that this installation can check begins: looked up as a whole, with each hit.
_KINDS = frozenset(
    _KIND.pack(MAGIC, VERSION, algorithm, codec, flags)
    for algorithm in _ALGORITHMS
    for codec in range(len(CODECS))
    for flags in (0, _SIGNED)
)
_SIZE = HEADER.size
_unpack = HEADER.unpack_from
_make = tuple.__new__  # a named tuple's own constructor takes twice the time
_as_json = json.JSONEncoder(default=repr).encode  # `json.dumps` would make one for each entry


class _Crc32:
    """crc32 with the functions that xxhash's checksums have."""

    __slots__ = ("_sum",)

    def __init__(self) -> None:
        self._sum = 0

    def update(self, data: Buffer) -> None:
        """Add *data*."""
        self._sum = zlib.crc32(data, self._sum)

    def intdigest(self) -> int:
        """The checksum so far."""
        return self._sum


def hasher(algorithm: int) -> Any:
    """The checksum of an entry, fed in pieces."""
    return xxhash.xxh3_64() if algorithm == _XXH3 else _Crc32()


class Header(NamedTuple):
    """The fixed part of an entry. A tuple: each hit makes one, and a frozen dataclass is slow."""

    magic: bytes
    version: int
    algorithm: int
    codec: int
    flags: int
    body: int
    raw: int
    metadata: int
    buffers: int
    token: bytes
    reserved: bytes
    checksum: int

    @property
    def size(self) -> int:
        """Size of the whole file."""
        signature = SIGNATURE if self.flags else 0
        return HEADER.size + self.body + self.metadata + signature


def parse_header(data: Buffer) -> Header | None:
    """The header that *data* begins with, or None where it is none this version can check."""
    if len(data) < _SIZE or bytes(data[: _KIND.size]) not in _KINDS:
        return None
    header = _make(Header, _unpack(data))
    return header if header.reserved == _RESERVED else None


def token_of(head: Buffer) -> bytes | None:
    """The token of the entry that begins with *head*, not verified; None where it is none."""
    return bytes(head[40:48]) if bytes(head[:8]) == MAGIC else None


def is_foreign(data: Buffer) -> bool:
    """Whether *data* begins an entry that only another installation can check.

    Of another version, or with a checksum whose package is not here: left to those who can.
    """
    if len(data) < HEADER.size or bytes(data[:8]) != MAGIC:
        return False
    version, algorithm = struct.unpack_from("<HB", data, 8)
    return version != VERSION or (algorithm == _XXH3 and xxhash is None)


class Entry:
    """An entry that is in memory whole and has been verified."""

    __slots__ = ("data", "header")

    def __init__(self, data: bytes, header: Header) -> None:
        self.data, self.header = data, header

    def value(self) -> Any:
        """The value.

        Raises:
            Exception: whatever unpickling raises, as when a class is no longer there.
        """
        header = self.header
        body: Buffer = self.data[_SIZE : _SIZE + header.body]
        if header.codec:
            body = decompress(body, CODECS[header.codec], header.raw)
        return load_body(body, header.buffers)

    def metadata(self) -> dict[str, Any]:
        """What joblib noted of the call."""
        start = HEADER.size + self.header.body
        return read_metadata(self.data[start : start + self.header.metadata])


def read_metadata(data: Buffer) -> dict[str, Any]:
    """Metadata from its JSON; {} where it is none."""
    found = json.loads(bytes(data))
    return found if isinstance(found, dict) else {}


def open_small(data: bytes, binding: bytes, key: bytes | None) -> Entry | None:
    """The entry that the bytes of a whole file are, verified, or None where they are none."""
    header = parse_header(data)
    if header is None:
        return None
    end = _SIZE + header.body + header.metadata
    signature = SIGNATURE if header.flags else 0
    if len(data) != end + signature or (key is None) is not (not signature):
        return None
    checked = binding + data[:_UNCHECKED] + data[_SIZE:end]
    if header.algorithm == _XXH3:
        if xxhash.xxh3_64_intdigest(checked) != header.checksum:
            return None
    elif zlib.crc32(checked) != header.checksum:
        return None
    if key is not None and not hmac.compare_digest(
        hmac.digest(key, binding + data[:end], hashlib.sha256), data[end:]
    ):
        return None
    return Entry(data, header)


def build(
    pieces: Sequence[Buffer],
    buffers: int,
    metadata: Mapping[str, Any],
    binding: bytes,
    *,
    codec: str = "",
    level: int = 3,
    key: bytes | None = None,
) -> tuple[list[Buffer], bytes]:
    """An entry in pieces ready to be written, and its token."""
    raw = total(pieces)
    body: Sequence[Buffer] = compress(pieces, codec, level) if codec else pieces
    notes = _as_json(metadata).encode()
    algorithm = _XXH3 if xxhash else _CRC32
    token = os.urandom(8)
    flags = _SIGNED if key is not None else 0
    fields = (CODECS.index(codec), flags, total(body), raw, len(notes), buffers, token, b"")
    unchecked = HEADER.pack(MAGIC, VERSION, algorithm, *fields, 0)[:_UNCHECKED]
    checksum = _checksum(algorithm, (binding, unchecked, *body, notes))
    head = unchecked + checksum.to_bytes(8, "little")
    out: list[Buffer] = [head, *body, notes]
    if key is not None:
        out.append(sign(key, (binding, *out)))
    return out, token


def sign(key: bytes, pieces: Iterable[Buffer]) -> bytes:
    """The signature over all pieces."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for piece in pieces:
        mac.update(piece)
    return mac.digest()


def _checksum(algorithm: int, pieces: Sequence[Buffer]) -> int:
    if total(pieces) < _JOINED:
        pieces = [b"".join(pieces)]
    found = hasher(algorithm)
    for piece in pieces:
        found.update(piece)
    return int(found.intdigest())
