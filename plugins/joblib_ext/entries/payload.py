"""Values as bytes: a pickle, the large buffers beside it, compression on top.

The body of an entry is the pickle (protocol 5), then each out-of-band buffer at a multiple of 64
bytes, then a table of offset and length per buffer. A body without buffers is the pickle alone.
"""

from __future__ import annotations

import bz2
import copyreg
import importlib
import lzma
import pickle
import struct
import sys
import zlib
from collections.abc import Callable, Iterable, Sequence
from io import BytesIO
from typing import Any

# A cache line, and what SIMD loads of any array type like.
ALIGN = 64
_TABLE_ROW = struct.Struct("<QQ")
# So many buffers stand apart whatever their size; more of them only when they are worth it.
_ALWAYS_APART = 64
# A page: below it, copying costs less than a row in the table.
_APART_BYTES = 4096
_GZIP_WINDOW = 31  # zlib's own number for the gzip container

Buffer = bytes | bytearray | memoryview


def _reduce_array(array: Any) -> Any:
    """An array as one that stands in a buffer of its own, and can be mapped.

    A memory-mapped one is stored by value, as joblib does: its file may go away. Slices are made
    contiguous. Times are stored as numbers, since they have no buffers.
    """
    numpy: Any = sys.modules["numpy"]
    array = numpy.asarray(array)
    if array.dtype.hasobject:
        return array.__reduce_ex__(5)
    if not (array.flags.c_contiguous or array.flags.f_contiguous):
        array = array.copy()
    if array.dtype.kind in "mM":
        return array_as, (array.view("i8"), array.dtype)
    return array.__reduce_ex__(5)


def array_as(array: Any, dtype: Any) -> Any:
    """The same bytes as an array of times; entries name this function."""
    return array.view(dtype)


def _pickler(stream: BytesIO, keep: Callable[[pickle.PickleBuffer], bool]) -> pickle.Pickler:
    pickler = pickle.Pickler(stream, 5, buffer_callback=keep)
    numpy: Any = sys.modules.get("numpy")
    if hasattr(numpy, "memmap"):
        arrays: dict[Any, Any] = dict.fromkeys((numpy.ndarray, numpy.memmap), _reduce_array)
        pickler.dispatch_table = {**copyreg.dispatch_table, **arrays}
    return pickler


def dump_body(value: object) -> tuple[list[Buffer], int]:
    """The body of *value* in pieces that are not copied, and its number of buffers.

    Raises:
        Exception: whatever pickling *value* raises.
    """
    buffers: list[memoryview] = []

    def keep_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            raw = buffer.raw()
        except BufferError:
            return True  # not contiguous
        if not raw.nbytes or (len(buffers) >= _ALWAYS_APART and raw.nbytes < _APART_BYTES):
            return True
        buffers.append(raw)
        return False

    if isinstance(value, (int, str, float, bytes, type(None))):
        return [pickle.dumps(value, 5)], 0
    stream = BytesIO()
    _pickler(stream, keep_in_band).dump(value)
    data = stream.getvalue()
    if not buffers:
        return [data], 0
    pieces: list[Buffer] = [data]
    position = len(data)
    rows = []
    for raw in buffers:
        padding = -position % ALIGN
        pieces += [b"\0" * padding, raw]
        rows.append(_TABLE_ROW.pack(position + padding, raw.nbytes))
        position += padding + raw.nbytes
    pieces += [b"\0" * (-position % 8), *rows]
    return pieces, len(buffers)


def read_table(tail: Buffer, count: int, body_length: int) -> list[tuple[int, int]]:
    """Offset and length of each of *count* buffers, from the last bytes of a body.

    Raises:
        ValueError: the rows are not those of buffers that stand in the body one after the other.
    """
    if count * _TABLE_ROW.size > min(body_length, len(tail)):
        raise ValueError("more buffers than bytes")
    rows = list(_TABLE_ROW.iter_unpack(memoryview(tail)[len(tail) - count * _TABLE_ROW.size :]))
    limit = body_length - count * _TABLE_ROW.size
    ends = [0, *(offset + length for offset, length in rows)]
    if max(ends) > limit or any(row[0] < end for row, end in zip(rows, ends, strict=False)):
        raise ValueError("buffers overlap, or stand outside of their entry")
    return rows


def load_body(body: Buffer, count: int) -> Any:
    """The value of a body that is in memory whole; its buffers are copied, so writable."""
    if not count:
        return pickle.loads(body)  # noqa: S301  # verified and, with a key, signed
    view = memoryview(body)
    rows = read_table(view, count, view.nbytes)
    buffers = [bytearray(view[offset : offset + length]) for offset, length in rows]
    return pickle.loads(view, buffers=buffers)  # noqa: S301  # verified and, with a key, signed


def _lz4() -> Any:
    return importlib.import_module("lz4.frame")


def compress(pieces: Iterable[Buffer], codec: str, level: int) -> list[bytes]:
    """The pieces as one compressed stream."""
    makers: dict[str, Callable[[], Any]] = {
        "zlib": lambda: zlib.compressobj(level),
        "gzip": lambda: zlib.compressobj(level, zlib.DEFLATED, _GZIP_WINDOW),
        "bz2": lambda: bz2.BZ2Compressor(max(level, 1)),
        "lzma": lambda: lzma.LZMACompressor(lzma.FORMAT_ALONE, preset=level),
        "xz": lambda: lzma.LZMACompressor(lzma.FORMAT_XZ, preset=level),
        "lz4": lambda: _lz4().LZ4FrameCompressor(compression_level=level),
    }
    maker = makers[codec]()
    if codec != "lz4":
        return [*map(maker.compress, pieces), maker.flush()]
    return [maker.begin(), *(maker.compress(bytes(piece)) for piece in pieces), maker.flush()]


def decompress(data: Buffer, codec: str, length: int) -> bytes:
    """The *length* bytes that *data* stands for; never more, whatever the stream says.

    Raises:
        ValueError: the stream is not whole, or holds another number of bytes.
    """
    makers: dict[str, Callable[[], Any]] = {
        "zlib": zlib.decompressobj,
        "gzip": lambda: zlib.decompressobj(_GZIP_WINDOW),
        "bz2": bz2.BZ2Decompressor,
        "lz4": lambda: _lz4().LZ4FrameDecompressor(),
    }
    try:
        # lz4 takes no other buffer than bytes
        out = makers.get(codec, lzma.LZMADecompressor)().decompress(bytes(data), length + 1)
    except (zlib.error, lzma.LZMAError, OSError, EOFError, RuntimeError) as error:
        raise ValueError(f"the {codec} stream is damaged: {error}") from error
    if len(out) != length:
        raise ValueError(f"the {codec} stream holds another number of bytes than it says")
    return bytes(out)


def total(pieces: Sequence[Buffer]) -> int:
    """The number of bytes of all pieces."""
    return sum(map(len, pieces))
