"""What a cached call never does: raise an error of its store, serve what was cleared, queue up."""

import copyreg
import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner
from joblib import Memory, expires_after
from tests.support.joblib_files import stored

import joblib_ext  # noqa: F401  # registers the backend
from joblib_ext import single_flight
from joblib_ext.cli import joblib as command
from joblib_ext.entries import large_entry
from joblib_ext.maintenance.find import find_store, store_for
from joblib_ext.maintenance.keeping import keep_limits
from joblib_ext.maintenance.stats import verify_entries
from joblib_ext.stores import local_cache
from joblib_ext.stores.files import entry_files
from mlops_ext.errors import SettingsError

np = pytest.importorskip("numpy")


def make(folder, mmap_mode=None, compress=False, **options):
    return Memory(
        str(folder),
        backend="shared",
        verbose=0,
        mmap_mode=mmap_mode,
        compress=compress,
        backend_options=options,
    )


class TestErrors:
    @pytest.mark.parametrize("per_function", [False, True])
    def test_a_store_that_cannot_be_written_costs_a_warning(
        self, tmp_path, monkeypatch, per_function
    ):
        def fail(*_args, **_more):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(entry_files, "write_new", fail)
        memory = make(tmp_path, mmap_mode=None if per_function else "r")
        more = {"mmap_mode": "r"} if per_function else {}
        cached = memory.cache(lambda x: np.arange(20_000) + x, **more)
        with pytest.warns(Warning, match="No space left"):
            assert cached(1)[0] == cached(1)[0] == 1
        assert cached.call_and_shelve(1).get()[0] == 1

    def test_a_result_that_cannot_be_pickled_is_returned_with_a_map_too(self, tmp_path):
        cached = make(tmp_path, mmap_mode="r").cache(lambda x: lambda: x)
        with pytest.warns(Warning, match="Unable to cache"):
            assert cached(3)() == 3

    def test_where_warnings_are_errors_a_damaged_entry_is_computed_again(self, tmp_path):
        cached = make(tmp_path).cache(abs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert cached(-1) == 1
            (path,) = stored(tmp_path)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
            assert cached(-1) == 1
            assert make(tmp_path).cache(lambda x: threading.Lock())(1)

    def test_a_missing_compressor_is_told_when_the_memory_is_made(self, tmp_path, monkeypatch):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(SettingsError, match="lz4"):
            make(tmp_path, compress="lz4")

    @pytest.mark.parametrize("size", [10, 50_000])
    def test_damaged_metadata_and_values_are_never_used(self, tmp_path, size):
        calls = []

        def function(x):
            calls.append(x)
            return np.full(size, x)

        cached = make(tmp_path).cache(function, cache_validation_callback=expires_after(days=1))
        cached(1)
        for old, new in ((b'"time"', b'"tile"'), (b"\1" + b"\0" * 7, b"\2" + b"\0" * 7)):
            (path,) = stored(tmp_path)
            path.write_bytes(path.read_bytes().replace(old, new))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert not cached.check_call_in_cache(1)
                assert cached.call_and_shelve(1).get()[-1] == 1
                assert cached(1)[-1] == 1
        assert len(calls) == 3


def test_reducers_that_are_registered_later_are_used(tmp_path):
    class Locked:
        def __init__(self):
            self.lock = threading.Lock()

    cached = make(tmp_path).cache(lambda x: Locked() if x else [x])
    cached(0)
    copyreg.pickle(Locked, lambda _: (dict, ()))
    try:
        cached(1)
        assert cached.check_call_in_cache(1)
    finally:
        copyreg.dispatch_table.pop(Locked)


@pytest.mark.parametrize(
    "make_array",
    [
        lambda: np.arange(40_000)[::2],
        lambda: np.arange(40_000).reshape(200, 200).T[::3],
        lambda: np.arange("2020-01-01", "2070-01-01", dtype="datetime64[D]"),
        lambda: np.arange(30_000).astype("timedelta64[s]")[::2],
        lambda: np.asfortranarray(np.arange(30_000.0).reshape(100, 300)),
    ],
)
def test_arrays_of_every_layout_are_mapped(tmp_path, make_array):
    def function(x):
        return {"array": make_array(), "x": x}

    make(tmp_path, mmap_mode="r").cache(function)(1)
    found = make(tmp_path, mmap_mode="r").cache(function)(1)["array"]
    expected = make_array()
    assert isinstance(found, np.memmap)
    assert not found.flags.writeable
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found == expected).all()


class TestClearing:
    def test_where_nothing_can_be_renamed_the_files_are_removed(self, tmp_path, monkeypatch):
        state = ["old"]
        cached = make(tmp_path).cache(lambda x: state[0])
        cached(1)
        rename = os.rename

        def refuse(source, target, **more):
            if "trash" in str(target):
                raise OSError(18, "Invalid cross-device link")
            rename(source, target, **more)

        monkeypatch.setattr(os, "rename", refuse)
        state[0] = "new"
        make(tmp_path).clear(warn=False)
        assert make(tmp_path).cache(cached.func)(1) == "new"

    def test_what_cannot_be_cleared_is_told(self, tmp_path, monkeypatch):
        memory = make(tmp_path)
        memory.cache(abs)(-1)

        def refuse(*_args, **_more):
            raise OSError(30, "Read-only file system")

        for name in ("rename", "unlink", "rmdir"):
            monkeypatch.setattr(os, name, refuse)
        with pytest.raises(OSError, match="Read-only"):
            memory.clear(warn=False)


class TestWaiting:
    def test_after_a_failure_all_who_waited_go_at_once(self, tmp_path):
        running, together, calls = threading.Event(), threading.Barrier(5), []

        def function(x):
            calls.append(x)
            if len(calls) == 1:
                running.set()
                while len(single_flight._waiting) < 5:
                    time.sleep(0.01)
            else:
                together.wait(60)  # breaks unless all five compute at the same time
            raise ValueError(x)

        def call(_):
            with pytest.raises(ValueError, match="1"):
                make(tmp_path).cache(function)(1)

        with ThreadPoolExecutor(6) as pool:
            first = pool.submit(call, 0)
            assert running.wait(60)
            for one in [first, *(pool.submit(call, n) for n in range(5))]:
                one.result(60)
        assert len(calls) == 6

    def test_an_expired_result_is_refreshed_by_one(self, tmp_path):
        calls, valid, start = [], [True], threading.Barrier(6)

        def function(x):
            calls.append(x)
            while len(calls) > 1 and len(single_flight._waiting) < 5:
                time.sleep(0.01)
            valid[0] = True
            return x

        def call(_):
            start.wait(60)
            return cached(1)

        cached = make(tmp_path).cache(function, cache_validation_callback=lambda _: valid[0])
        cached(1)
        valid[0] = False
        with ThreadPoolExecutor(6) as pool:
            assert list(pool.map(call, range(6))) == [1] * 6
        assert len(calls) == 2

    def test_a_lock_around_and_inside_a_call_ends_in_computing(self, tmp_path, monkeypatch):
        monkeypatch.setattr(single_flight, "_IN_PROCESS_S", 0.5)
        lock, inside, held, calls = threading.RLock(), threading.Event(), threading.Event(), []

        def query(x):
            calls.append(x)
            inside.set()
            assert held.wait(60)
            with lock:
                return x

        def handler():
            inside.wait(60)
            with lock:
                held.set()
                return cached(1)

        cached = make(tmp_path).cache(query)
        with ThreadPoolExecutor(2) as pool:
            one, other = pool.submit(handler), pool.submit(cached, 1)
            assert (one.result(60), other.result(60)) == (1, 1)
        assert len(calls) == 2

    def test_a_function_that_goes_elsewhere_leaves_nothing_behind(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "work").mkdir()

        def function(x):
            os.chdir("work")
            return x

        assert make("cache").cache(function)(1) == 1
        assert len(stored(tmp_path / "cache")) == 1
        assert list((tmp_path / "work").iterdir()) == []


class TestVerifying:
    def fill(self, folder, key):
        cached = make(folder, **({"sign_key": key} if key else {})).cache(abs)
        for number in range(5):
            cached(-number)

    def test_what_cannot_be_checked_stays_where_it_is(self, tmp_path):
        for key in ("one", "two", None):
            self.fill(tmp_path, key)
        assert len(stored(tmp_path)) == 15
        found = verify_entries(find_store(tmp_path, {"sign_key": "one"}))
        assert (found.good, found.unchecked, found.corrupt) == (10, 5, [])
        found = verify_entries(find_store(tmp_path))
        assert (found.good, found.unchecked, found.corrupt) == (5, 10, [])
        assert len(stored(tmp_path)) == 15

    def test_without_the_fast_checksum_nothing_is_damaged(self, tmp_path, monkeypatch):
        pytest.importorskip("xxhash")
        self.fill(tmp_path, None)
        from joblib_ext.entries import entry

        kinds = frozenset(kind for kind in entry._KINDS if kind[10] == entry._CRC32)
        monkeypatch.setattr(entry, "xxhash", None)
        monkeypatch.setattr(entry, "_KINDS", kinds)
        found = verify_entries(find_store(tmp_path))
        assert (found.good, found.unchecked, found.repaired) == (0, 5, 0)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("note", ["pipe", "device", b"[]", b"3\n", b"[" * 100_000, b"\xff\n"])
@pytest.mark.parametrize("verb", ["stats", "verify", "gc"])
def test_notes_that_a_stranger_wrote_stop_no_command(tmp_path, note, verb):
    make(tmp_path).cache(abs)(-1)
    (code,) = tmp_path.rglob("code.json")
    event = tmp_path / "joblib" / "mlops-shared-1" / "events" / "planted.jsonl"
    event.parent.mkdir(exist_ok=True)
    code.unlink()
    for path in (code, event):
        if note == "pipe":
            os.mkfifo(path)
        elif note == "device":
            path.symlink_to("/dev/zero")
        else:
            path.write_bytes(note)
    done = CliRunner().invoke(command, [verb, str(tmp_path)])
    assert done.exit_code in (0, 1), done.exception
    assert done.exception is None or isinstance(done.exception, SystemExit)


class TestLocalTier:
    def test_a_folder_that_others_can_use_is_refused(self, tmp_path):
        planted = tmp_path / "scratch" / f"joblib-{os.getuid()}"
        planted.mkdir(parents=True)
        planted.chmod(0o777)
        with pytest.warns(Warning, match="only this user"):
            cached = make(tmp_path / "far", local_tier=str(planted.parent)).cache(abs)
        assert cached(-1) == cached(-1) == 1
        assert list(planted.iterdir()) == []

    def test_it_is_made_for_this_user_alone(self, tmp_path):
        cached = make(tmp_path / "far", local_tier=str(tmp_path / "tier")).cache(abs)
        assert cached(-1) == cached(-1) == 1
        (own,) = (tmp_path / "tier").iterdir()
        assert own.stat().st_mode & 0o777 == 0o700


def test_members_of_a_group_can_store_whatever_the_umask_says(tmp_path):
    import grp

    before = os.umask(0o077)
    try:
        where = tmp_path / "new" / "cache"
        make(where, group=grp.getgrgid(os.getgid()).gr_name).cache(abs)(-1)
    finally:
        os.umask(before)
    (path,) = stored(where)
    for folder in path.parents:
        if folder == tmp_path:
            break
        assert folder.stat().st_mode & 0o2770 == 0o2770
    assert path.stat().st_mode & 0o060 == 0o060
    with pytest.raises(SettingsError, match="group"):
        make(tmp_path, group="no such group").cache(abs)(-1)


class TestLimits:
    def test_the_options_keep_size_age_and_versions(self, tmp_path):
        memory = make(tmp_path, keep_versions=2, max_age=timedelta(days=3), max_bytes="1K")
        for number in range(4):
            scope = {}
            exec(f"def f(x):\n    return {number}, x, 'y' * 100", scope)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for x in range(4):
                    memory.cache(scope["f"])(x)
        store = memory.store_backend._runtime.store
        keep_limits(store)
        items = memory.store_backend.get_items()
        assert 0 < sum(item.size for item in items) <= 1024
        for item in items:
            os.utime(item.path, (1, 1))
        keep_limits(store)
        assert memory.store_backend.get_items() == []

    def test_one_process_an_hour_keeps_them(self, tmp_path):
        store = store_for(str(tmp_path))
        assert [store.claim("1"), store.claim("1"), store.claim("2")] == [True, False, True]
        assert len(store.names_in(store.layout.claims)) == 1

    @pytest.mark.parametrize(
        "option", [{"max_bytes": "big"}, {"max_age": "soon"}, {"keep_versions": 0}]
    )
    def test_what_is_no_limit_is_refused(self, tmp_path, option):
        with pytest.raises(SettingsError, match=next(iter(option))):
            make(tmp_path, **option)


def test_a_cache_of_joblibs_own_can_be_taken_over(tmp_path, monkeypatch):
    (tmp_path / "plain_model.py").write_text("def f(x, y=3):\n    return list(range(x)), y\n")
    monkeypatch.syspath_prepend(tmp_path)
    from plain_model import f

    local = Memory(str(tmp_path / "old"), verbose=0).cache(f)
    for x in range(1, 4):
        local(x)
    arguments = ["import", str(tmp_path / "old"), str(tmp_path / "new")]
    done = CliRunner().invoke(command, arguments)
    assert done.output.startswith("took over 3 results; 0 were there"), done.output
    done = CliRunner().invoke(command, arguments)
    assert done.output.startswith("took over 0 results; 3 were there")
    cached = make(tmp_path / "new").cache(f)
    assert cached.check_call_in_cache(3)
    assert cached(3) == ([0, 1, 2], 3)


def test_the_local_tier_keeps_its_limit_though_others_write_at_the_same_time(tmp_path, monkeypatch):
    tier, limit = tmp_path / "tier", 1 << 20
    options = {"local_tier": str(tier), "local_tier_bytes": limit}
    real = local_cache.publish

    def publish_with_others(path, pieces):
        for number in range(8):  # all have looked before, and found room
            Path(path).with_name(f"{number:064x}").write_bytes(bytes(limit // 5))
        real(path, pieces)

    f = make(tmp_path, **options).cache(lambda x: np.full(limit // 10, x, "u1"))
    f(1)
    f(1)
    f(2)
    monkeypatch.setattr(local_cache, "publish", publish_with_others)
    f(2)
    assert list(tier.rglob("*"))
    assert sum(file.stat().st_size for file in tier.rglob("*") if file.is_file()) <= limit


@pytest.mark.parametrize("left", [0, 64, 200, 100_000])
@pytest.mark.parametrize("mmap_mode", [None, "r"])
def test_a_file_that_is_cut_after_it_was_opened_is_damaged_and_no_other_error(
    tmp_path, mmap_mode, left
):
    memory = make(tmp_path, mmap_mode=mmap_mode)
    reference = memory.cache(lambda x: np.full(30_000, x)).call_and_shelve(1)
    backend = memory.store_backend
    entry = backend._find(reference._call_id)
    with stored(tmp_path)[0].open("r+b") as file:
        file.truncate(left)
    with pytest.raises(large_entry.CorruptEntryError):
        backend.value_of(entry)
