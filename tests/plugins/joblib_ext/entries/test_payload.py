"""The bytes of a value: compressed and back, and tables that point nowhere else."""

import struct

import pytest

from joblib_ext.entries.payload import compress, decompress, read_table

CODECS = ["zlib", "gzip", "bz2", "lzma", "xz", "lz4"]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("length", [0, 1, 100_000])
def test_a_stream_gives_back_the_bytes_that_it_was_made_of(codec, length):
    if codec == "lz4":
        pytest.importorskip("lz4.frame")
    data = bytes(range(256)) * (length // 256) + b"x" * (length % 256)
    stream = b"".join(compress([data[: length // 2], data[length // 2 :]], codec, 1))
    assert decompress(stream, codec, length) == data


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("claimed", [999, 1001, 0, 10**9])
def test_a_stream_of_another_length_than_the_header_says_is_refused(codec, claimed):
    if codec == "lz4":
        pytest.importorskip("lz4.frame")
    stream = b"".join(compress([b"x" * 1000], codec, 1))
    with pytest.raises(ValueError, match="another number of bytes"):
        decompress(stream, codec, claimed)


@pytest.mark.parametrize("codec", CODECS)
def test_a_stream_that_was_cut_or_is_none_is_refused(codec):
    if codec == "lz4":
        pytest.importorskip("lz4.frame")
    stream = b"".join(compress([bytes(range(256)) * 40], codec, 1))
    for damaged in (stream[: len(stream) // 2], b"nothing of the kind", b""):
        with pytest.raises(ValueError, match=f"the {codec} stream"):
            decompress(damaged, codec, 256 * 40)


@pytest.mark.parametrize(
    ("rows", "fits"),
    [
        ([(0, 68)], True),
        ([(0, 69)], False),
        ([(68, 0)], True),
        ([(69, 0)], False),
        ([(2**40, 1)], False),
        ([(0, 2**40)], False),
    ],
)
def test_a_table_of_buffers_points_into_its_entry_or_is_refused(rows, fits):
    """A body of 84 bytes, the last 16 of which are the table."""
    body = b"b" * 68 + b"".join(struct.pack("<QQ", *row) for row in rows)
    if fits:
        assert read_table(body, len(rows), len(body)) == rows
    else:
        with pytest.raises(ValueError, match="buffers"):
            read_table(body, len(rows), len(body))


def test_one_row_of_a_table_that_points_elsewhere_is_enough():
    body = b"b" * 52 + struct.pack("<QQQQ", 0, 52, 8, 45)
    with pytest.raises(ValueError, match="buffers"):
        read_table(body, 2, len(body))
