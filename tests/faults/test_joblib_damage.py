"""Damaged entries: every way bytes can go wrong must cost a recomputation, never a wrong value."""

import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import numpy as np
import pytest
from joblib import Memory

import joblib_ext  # noqa: F401  # registers the backend
from joblib_ext.entries import large_entry
from joblib_ext.maintenance.find import find_store
from joblib_ext.maintenance.stats import verify_entries


def entries(location):
    root = Path(location) / "joblib" / "mlops-shared-1" / "items"
    return [path for path in root.rglob("*") if path.is_file() and path.name != "code.json"]


class Cached:
    """A function of one argument in a cache, and how often it was computed."""

    def __init__(self, location, value, *, compress=False, **options):
        self.calls = 0
        self.location = location
        memory = Memory(
            location, backend="shared", verbose=0, compress=compress, backend_options=options
        )

        def function(x):
            self.calls += 1
            return value

        self.call = memory.cache(function)
        self.memory = memory

    def file(self):
        self.call(1)
        (found,) = entries(self.location)
        return found


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def flipped(data, bit):
    out = bytearray(data)
    out[bit // 8 % len(out)] ^= 1 << bit % 8
    return bytes(out)


def check_damages(cached, value, damages):
    """Put each damaged content in the entry's place; the value must be right, and computed."""
    path = cached.file()
    for damage in damages:
        path.write_bytes(damage)
        before = cached.calls
        assert cached.call(1) == value
        assert cached.calls == before + 1, "a damaged entry was taken for a whole one"
        assert cached.call(1) == value
        assert cached.calls == before + 1, "the entry was not repaired"


@pytest.mark.timeout(60)
def test_a_fifo_in_an_entrys_place_is_moved_aside_and_nobody_waits_for_a_writer(tmp_path):
    cached = Cached(str(tmp_path), "value")
    path = cached.file()
    path.unlink()
    os.mkfifo(path)
    assert cached.call(1) == "value"
    assert (cached.calls, cached.call(1), cached.calls) == (2, "value", 2)
    path.unlink()
    os.mkfifo(path)
    found = verify_entries(find_store(tmp_path))
    assert (found.good, found.corrupt, found.repaired) == (0, [str(path)], 1)


def test_upstream_returns_wrong_values_after_a_flipped_bit(tmp_path):
    value = np.arange(500)
    memory = Memory(tmp_path, verbose=0)

    def function(x):
        return value

    cached = memory.cache(function)
    cached(1)
    (path,) = tmp_path.rglob("output.pkl")
    whole = path.read_bytes()
    wrong = 0
    for bit in random.Random(1).sample(range(len(whole) * 8), 200):
        path.write_bytes(flipped(whole, bit))
        wrong += not np.array_equal(cached(1), value)
    assert wrong > 50


@pytest.mark.parametrize(
    "step",
    [29, pytest.param(4, marks=pytest.mark.integration), pytest.param(1, marks=pytest.mark.slow)],
)
def test_every_flipped_bit_of_a_small_entry_is_noticed(tmp_path, step):
    cached = Cached(str(tmp_path), 123456789)
    whole = cached.file().read_bytes()
    bits = range(0, len(whole) * 8, step)
    check_damages(cached, 123456789, (flipped(cached.file().read_bytes(), bit) for bit in bits))


@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.integration)])
def test_truncation_zero_filling_and_appending_are_noticed(tmp_path, every):
    cached = Cached(str(tmp_path), "text" * 100)
    whole = cached.file().read_bytes()
    damages = [whole[:length] for length in range(0, len(whole), 7)]
    damages += [whole + extra for extra in (b"\0", b"\0\0", b"more")]
    damages += [whole[:at] + bytes(len(whole) - at) for at in range(0, len(whole) - 40, 31)]
    damages += [b"", b"\0" * len(whole), b"garbage"]
    check_damages(cached, "text" * 100, damages[::every])


@pytest.mark.parametrize(
    "compress",
    [
        False,
        "zlib",
        *(pytest.param(c, marks=pytest.mark.integration) for c in ("gzip", "bz2", "lzma", "xz")),
    ],
)
def test_damage_to_a_compressed_entry_is_noticed(tmp_path, compress):
    value = list(range(3000))
    cached = Cached(str(tmp_path), value, compress=(compress, 1) if compress else False)
    whole = cached.file().read_bytes()
    chosen = random.Random(2).sample(range(len(whole) * 8), 40)
    check_damages(cached, value, [*(flipped(whole, bit) for bit in chosen), whole + b"\0\0"])


@pytest.mark.parametrize("mmap_mode", [None, "r", "c"])
def test_damage_to_a_large_entry_is_noticed(tmp_path, mmap_mode):
    value = np.random.default_rng(3).random(50_000)
    calls = []
    memory = Memory(tmp_path, backend="shared", verbose=0, mmap_mode=mmap_mode)

    def function(x):
        calls.append(1)
        return value

    cached = memory.cache(function)
    cached(1)
    root = tmp_path / "mlops-shared-1" / "items"
    for bit in random.Random(4).sample(range(400_000 * 8), 60):
        (path,) = [p for p in root.rglob("*") if p.is_file() and p.name != "code.json"]
        with path.open("r+b") as file:
            file.seek(bit // 8)
            byte = file.read(1)[0]
            file.seek(bit // 8)
            file.write(bytes([byte ^ 1 << bit % 8]))
        count = len(calls)
        assert np.array_equal(cached(1), value)
        assert len(calls) == count + 1
    assert len(list((tmp_path / "mlops-shared-1" / "corrupt").iterdir())) == 60


def test_an_entry_under_another_name_does_not_verify(tmp_path):
    calls = []
    memory = Memory(str(tmp_path), backend="shared", verbose=0)

    def function(x):
        calls.append(x)
        return x

    cached = memory.cache(function)
    cached(1)
    (one,) = entries(tmp_path)
    cached(2)
    (two,) = set(entries(tmp_path)) - {one}
    shutil.copy(one, two)
    assert cached(2) == 2
    assert calls == [1, 2, 2]


def test_damage_is_moved_aside_and_told_once(tmp_path):
    cached = Cached(str(tmp_path), 7)
    path = cached.file()
    path.write_bytes(flipped(path.read_bytes(), 600))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert cached.call(1) == 7
        assert cached.call(1) == 7
    assert len([w for w in caught if "failed its check" in str(w.message)]) == 1
    (aside,) = (tmp_path / "joblib" / "mlops-shared-1" / "corrupt").iterdir()
    assert aside.stat().st_size == path.stat().st_size or aside.stat().st_size > 64


class TestSigning:
    def test_an_entry_without_the_key_is_never_unpickled(self, tmp_path):
        marker = tmp_path / "ran"
        cached = Cached(str(tmp_path / "cache"), 7, sign_key="secret")
        path = cached.file()
        other = Cached(str(tmp_path / "other"), Evil(str(marker)))
        evil = other.file().read_bytes()
        assert not marker.exists()
        path.write_bytes(evil)
        assert cached.call(1) == 7
        assert cached.calls == 2
        assert not marker.exists()

    @pytest.mark.parametrize("verify", ["always", "first", "never"])
    @pytest.mark.parametrize("size", [100, 100_000])
    def test_a_map_of_an_entry_without_the_key_is_never_unpickled(self, tmp_path, verify, size):
        marker = tmp_path / "ran"
        options = {"sign_key": "secret", "verify": verify}

        def store(folder):
            return Memory(
                folder, backend="shared", verbose=0, mmap_mode="r", backend_options=options
            )

        calls = []

        def function(x):
            calls.append(x)
            return np.arange(size)

        call = store(tmp_path / "cache").cache(function)
        assert call(1).sum() == call(1).sum()
        (path,) = [path for path in (tmp_path / "cache").rglob("items/*/*/*/*") if path.is_file()]
        good = path.read_bytes()
        head = list(struct.unpack("<8sHBBIQQII8s8sQ", good[:64]))
        stream = pickle.dumps(Evil(str(marker)), 5).ljust(64, b"\0")
        body = stream.ljust(size * 8, b"\0") + bytes(64) + struct.pack("<QQ", size * 8, 64)
        head[5:9] = len(body), len(body), 2, 1
        path.write_bytes(struct.pack("<8sHBBIQQII8s8sQ", *head) + body + b"{}" + bytes(32))
        assert call(1).sum() == np.arange(size).sum()
        assert len(calls) == 2
        assert not marker.exists()

    def test_what_a_map_unpickles_is_what_was_checked(self, tmp_path, monkeypatch):
        """Somebody changes the file between the check and the unpickling."""
        options = {"sign_key": "secret"}
        memory = Memory(
            tmp_path, backend="shared", verbose=0, mmap_mode="r", backend_options=options
        )
        call = memory.cache(lambda x: np.arange(100_000))
        call(1)
        (path,) = [path for path in tmp_path.rglob("items/*/*/*/*") if path.is_file()]
        marker = tmp_path / "ran"
        finish = large_entry._Check.finish

        def finish_and_change(check):
            metadata = finish(check)
            with path.open("r+b") as file:
                file.seek(64)
                file.write(pickle.dumps(Evil(str(marker)), 5))
            return metadata

        monkeypatch.setattr(large_entry._Check, "finish", finish_and_change)
        call(1)
        assert not marker.exists()

    def test_a_wrong_key_is_another_cache(self, tmp_path):
        one = Cached(str(tmp_path), 7, sign_key="one")
        two = Cached(str(tmp_path), 7, sign_key="two")
        none = Cached(str(tmp_path), 7)
        for cached in (one, two, none, one, two, none):
            assert cached.call(1) == 7
        assert (one.calls, two.calls, none.calls) == (1, 1, 1)

    def test_a_changed_entry_with_a_right_checksum_does_not_verify(self, tmp_path):
        from joblib_ext.entries import entry as _entry

        cached = Cached(str(tmp_path), 7, sign_key="secret")
        path = cached.file()
        home = path.parts[-4:-1]
        address = f"x\0{home[1]}\0{path.name}".encode()
        pieces, _ = _entry.build([b"cos\nsystem\n"], 0, {}, address, key=b"guess")
        path.write_bytes(b"".join(pieces))
        assert cached.call(1) == 7
        assert cached.calls == 2

    def test_the_key_is_not_shown(self, tmp_path):
        cached = Cached(str(tmp_path), 7, sign_key="secret")
        assert "secret" not in repr(cached.memory.store_backend)
        assert "secret" not in repr(cached.memory.store_backend.options)


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_without_xxhash_entries_are_checked_with_crc32(tmp_path):
    code = """
        import sys
        sys.modules["xxhash"] = None
        import joblib_ext
        from joblib import Memory
        from pathlib import Path
        calls = []
        def function(x):
            calls.append(x)
            return x
        function.__module__ = "work"
        cached = Memory(sys.argv[1], backend="shared", verbose=0).cache(function)
        assert cached(1) == cached(1) == 1
        assert calls == [1], calls
        (path,) = [p for p in Path(sys.argv[1]).rglob("items/*/*/*/*") if p.is_file()]
        data = bytearray(path.read_bytes())
        assert data[10] == 1
        data[-5] ^= 4
        path.write_bytes(data)
        assert cached(1) == 1
        assert calls == [1, 1], calls
    """
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code), tmp_path], check=True
    )
