"""The history of earlier runs: shared, bounded, and never in a task's way."""

import contextlib
import itertools
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mlops_ext.errors import HistoryError
from mlops_ext.extensions import builtin
from mlops_ext.memory import Caps, Features, Quantity, TaskKey
from mlops_ext.memory.history import (
    History,
    HistoryPolicy,
    InMemoryHistory,
    Observation,
    default_path,
)
from mlops_ext.memory.history.allocations import Outcome
from mlops_ext.memory.history.observations import CURVE_POINTS, compress_curve

KEY = TaskKey(pipeline="train", step="fit", version="sha256:1")
OTHER = TaskKey(pipeline="train", step="load")

WRITER = """
import sys
from pathlib import Path
from mlops_ext.memory.history import History, Observation
from mlops_ext.memory import TaskKey
history = History(Path(sys.argv[1]))
sys.stdin.readline()
for number in range(25):
    history.append(TaskKey(pipeline="p", step="s"), Observation(peak=number + 1, runtime_s=1.0))
"""


@pytest.fixture(params=["sqlite", "memory"])
def records(request, tmp_path):
    return (
        History(tmp_path / "deep" / "h.sqlite") if request.param == "sqlite" else InMemoryHistory()
    )


def test_what_was_appended_is_read_in_order(records):
    first = Observation(peak=5, runtime_s=1.5, version="v1")
    second = Observation(
        peak=2**40,
        runtime_s=0.0,
        input_bytes=1e9,
        censored=True,
        curve=((0.0, 1), (2.5, 2**40)),
        outcomes={"all": Outcome(left=1.25, failed=2.0, kills=1.0)},
        first_limit=7,
        ratio=0.25,
        resizes_s=(1.5, math.inf),
    )
    records.append(KEY, first)
    records.append(OTHER, first)
    records.append(KEY, second)
    rows = records.read(KEY)
    assert [run for _, run in rows] == [first, second]
    assert records.read(KEY, after=rows[0][0]) == rows[1:]
    assert records.read(KEY, limit=1) == rows[1:]
    assert records.read(KEY, after=rows[1][0]) == []
    assert [run for _, run in records.read(OTHER)] == [first]


def test_all_versions_of_a_step_share_a_history(records):
    records.append(KEY, Observation(peak=1, runtime_s=1.0, version="a"))
    newer = TaskKey(pipeline="train", step="fit", version="b")
    assert [run.version for _, run in records.read(newer)] == ["a"]


def test_reading_before_anything_was_written_creates_nothing(tmp_path):
    path = tmp_path / "none" / "h.sqlite"
    assert History(path).read(KEY) == []
    assert History(path).steps() == []
    assert not path.parent.exists()
    empty = tmp_path / "empty.sqlite"
    empty.touch()
    assert History(empty).read(KEY) == []


def test_the_file_needs_no_shared_memory(tmp_path):
    history = History(tmp_path / "h.sqlite")
    history.append(KEY, Observation(peak=1, runtime_s=1.0))
    with sqlite3.connect(history.path) as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert [path.name for path in tmp_path.iterdir()] == ["h.sqlite"]


def test_many_processes_append_at_once_and_nothing_is_lost(tmp_path):
    path = tmp_path / "h.sqlite"
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, text=True) for _ in range(4)]
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    assert [writer.wait(60) for writer in writers] == [0] * 4
    for writer in writers:
        writer.stdin.close()
    peaks = sorted(run.peak for _, run in History(path).read(TaskKey(pipeline="p", step="s")))
    assert peaks == sorted(list(range(1, 26)) * 4)


def test_a_step_keeps_its_newest_runs_only(tmp_path):
    history = History(tmp_path / "h.sqlite", keep=10, total=100)
    for number in range(1, 129):  # the 64th and the 128th append prune
        history.append(KEY, Observation(peak=number, runtime_s=1.0))
    assert [run.peak for _, run in history.read(KEY)] == list(range(119, 129))
    history.append(KEY, Observation(peak=129, runtime_s=1.0))
    assert [run.peak for _, run in history.read(KEY)] == list(range(119, 130))


def test_the_file_keeps_a_total_whatever_the_steps_are_called(tmp_path):
    history = History(tmp_path / "h.sqlite", keep=1, total=50)
    for number in range(256):
        history.append(TaskKey(pipeline="p", step=str(number)), Observation(peak=1, runtime_s=1.0))
    assert len(history.steps()) == 50


def test_another_programs_database_is_left_alone(tmp_path):
    path = tmp_path / "other.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE precious (x)")
    for action in (
        lambda: History(path).append(KEY, Observation(peak=1, runtime_s=1.0)),
        lambda: History(path).read(KEY),
    ):
        with pytest.raises(HistoryError, match="another program's; set memory"):
            action()
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("precious",)]


def test_a_newer_format_is_not_touched(tmp_path):
    path = tmp_path / "h.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    with pytest.raises(HistoryError, match=r"newer mlops-ext wrote it .*; update this one"):
        History(path).append(KEY, Observation(peak=1, runtime_s=1.0))


def test_what_is_no_database_says_so(tmp_path):
    path = tmp_path / "h.sqlite"
    path.write_text("not a database, but long enough to look at" * 100)
    with pytest.raises(HistoryError, match="moved aside") as caught:
        History(path).read(KEY)
    assert caught.value.path == path
    (tmp_path / "file").touch()
    with pytest.raises(HistoryError):
        History(tmp_path / "file" / "h.sqlite").append(KEY, Observation(peak=1, runtime_s=1.0))


def test_a_locked_history_gives_up_after_its_patience(tmp_path):
    history = History(tmp_path / "h.sqlite", busy_s=0.05)
    history.append(KEY, Observation(peak=1, runtime_s=1.0))
    holder = sqlite3.connect(history.path, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        with pytest.raises(HistoryError, match="locked"):
            history.append(KEY, Observation(peak=2, runtime_s=1.0))
    finally:
        holder.close()
    assert len(history.read(KEY)) == 1


@pytest.mark.parametrize(("keep", "total"), [(0, 10), (10, 5)])
def test_bounds_that_hold_nothing_are_refused(tmp_path, keep, total):
    with pytest.raises(ValueError, match="keep"):
        History(tmp_path / "h.sqlite", keep=keep, total=total)


def test_the_default_place_follows_xdg(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_path() == tmp_path / "mlops-ext" / "history.sqlite"


def test_a_curve_is_kept_as_its_running_maximum():
    assert compress_curve([(2.0, 5), (0.0, 1), (1.0, 7)]) == ((0.0, 1), (1.0, 7))
    assert compress_curve([]) == ()
    rising = [(float(second), second * 10) for second in range(1, 1001)]
    kept = compress_curve(rising)
    assert len(kept) <= CURVE_POINTS
    assert kept[0] == rising[0]
    assert kept[-1] == rising[-1]
    steps = [high - low for (_, low), (_, high) in itertools.pairwise(kept)]
    assert max(steps) <= 10_000 / (CURVE_POINTS - 1) + 10


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("curve", "{"),
        ("costs", b"\xff"),
        ("peak", -5),
        ("peak", "x"),
        ("peak", 2**47),
        ("peak", 1e300),
        ("peak", math.inf),
    ],
)
def test_a_damaged_row_is_left_out_and_the_others_count(tmp_path, column, value):
    records = History(tmp_path / "history.sqlite")
    for _ in range(20):
        records.append(KEY, Observation(peak=2**30, runtime_s=1.0, version=KEY.version))
    damage(records.path, column, value)
    assert len(records.read(KEY)) == 19
    plan = HistoryPolicy(records=records).decide(KEY, Features(), Quantity(2**34), Caps())
    assert plan.reason.startswith("19 earlier runs")


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("ratio", 0.0),
        ("ratio", -1.0),
        ("ratio", 1e300),
        ("runtime_s", -1.0),
        ("runtime_s", 1e300),
        ("first", -1),
        ("first", 1e300),
        ("input_bytes", "x"),
        ("input_bytes", 1e300),
        ("curve", "[[1, 2], [3]]"),
        ("curve", "[[0, 1], [1, 1e300]]"),
        ("curve", "[[0, null], [1, 2]]"),
        ("curve", '{"a": 1}'),
        ("costs", "[]"),
        ("costs", '{"all": 1e999}'),
        ("costs", '{"all": [1e300, 0, 0]}'),
        ("resizes", "7"),
        ("resizes", "[-1, null]"),
    ],
)
def test_a_value_that_makes_no_sense_counts_as_not_known(tmp_path, column, value):
    records = History(tmp_path / "history.sqlite")
    for _ in range(20):
        records.append(KEY, Observation(peak=2**30, runtime_s=1.0, version=KEY.version))
    damage(records.path, column, value)
    plan = HistoryPolicy(records=records).decide(KEY, Features(), Quantity(2**34), Caps())
    assert plan.reason.startswith("20 earlier runs")


def damage(path, column, value, number=10):
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(f"UPDATE run SET {column} = ? WHERE id = ?", (value, number))


@pytest.mark.parametrize("kind", ["half", "header"])
def test_a_damaged_file_is_moved_aside_and_begun_anew(tmp_path, kind, caplog):
    history = History(tmp_path / "h.sqlite")
    for number in range(60):
        history.append(KEY, Observation(peak=2**30 + number, runtime_s=1.0))
    whole = history.path.read_bytes()
    damaged = {
        "half": whole[: len(whole) // 2],
        "header": b"not a database!!" + whole[16:],
    }[kind]
    history.path.write_bytes(damaged)
    Path(f"{history.path}-journal").write_bytes(b"what was under way then")
    policy = HistoryPolicy(records=history)
    plan = policy.decide(KEY, Features(), Quantity(2**31), Caps())
    assert plan.first_limit == 2**31
    policy.observe(KEY, Features(), Quantity(2**30), 60.0)
    (aside,) = (path for path in tmp_path.glob("*.damaged-*") if not path.name.endswith("-journal"))
    assert aside.read_bytes() == damaged
    assert str(aside) in caplog.text
    assert policy.decide(KEY, Features(), Quantity(2**31), Caps()).reason.startswith(
        "1 earlier run"
    )


def killed(action):
    """Run *action* in a forked child; whether it was killed before its end."""
    child = os.fork()
    if not child:
        with contextlib.suppress(BaseException):
            action()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or status == 0
    return os.WIFSIGNALED(status)


def kill_after(calls, monkeypatch, target, name):
    """In this process, let the *calls*-th call of ``target.name`` be followed by signal 9."""
    original, count = getattr(target, name), itertools.count(1)

    def counted(*args):
        result = original(*args)
        if next(count) == calls:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    monkeypatch.setattr(target, name, counted)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("earlier", [0, pytest.param(63, marks=pytest.mark.integration)])
def test_signal_9_at_any_step_of_an_append_loses_nothing_that_was_added(
    tmp_path, monkeypatch, earlier
):
    """63 rows are there already: the next one prunes, and the file is made smaller."""
    path, connect = tmp_path / "h.sqlite", sqlite3.connect
    for _ in range(earlier):
        History(path).append(KEY, Observation(peak=1, runtime_s=1.0))
    whole = path.read_bytes() if earlier else None
    step, was_killed = 0, True
    while was_killed:
        step += 7
        path.unlink(missing_ok=True)
        if whole is not None:
            path.write_bytes(whole)

        def append(steps=step):
            def counting(*args, **named):
                database, count = connect(*args, **named), itertools.count(1)
                database.set_progress_handler(
                    lambda: next(count) == steps and os.kill(os.getpid(), signal.SIGKILL), 1
                )
                return database

            monkeypatch.setattr(sqlite3, "connect", counting)
            History(path, keep=9, total=9).append(KEY, Observation(peak=2, runtime_s=1.0))

        was_killed = killed(append)
        peaks = [run.peak for _, run in History(path).read(KEY)]
        assert peaks.count(1) in ({earlier} if was_killed and 2 not in peaks else {earlier, 8})
        assert 2 in peaks or was_killed
        History(path).append(KEY, Observation(peak=3, runtime_s=1.0))
        assert [run.peak for _, run in History(path).read(KEY)][-1] == 3
        with contextlib.closing(sqlite3.connect(path)) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert step > 7


@pytest.mark.skipif(os.name != "posix", reason="folders have no locks")
def test_a_stranger_who_holds_the_folder_s_lock_makes_nobody_wait_for_ever(tmp_path):
    import fcntl

    path = tmp_path / "h.sqlite"
    path.write_bytes(b"SQLite format 3\0" + b"damaged" * 100)
    stranger = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(stranger, fcntl.LOCK_EX)
        history = History(path, busy_s=0.1)
        history.append(KEY, Observation(peak=3, runtime_s=1.0))
    finally:
        os.close(stranger)
    assert [run.peak for _, run in history.read(KEY)] == [3]
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_signal_9_while_a_damaged_file_is_moved_aside_loses_nothing(tmp_path, monkeypatch):
    history = History(tmp_path / "h.sqlite")
    history.path.write_bytes(b"not a database!!" * 300)

    def append():
        kill_after(1, monkeypatch, Path, "rename")
        history.append(KEY, Observation(peak=1, runtime_s=1.0))

    assert killed(append)
    history.append(KEY, Observation(peak=2, runtime_s=1.0))
    assert [run.peak for _, run in history.read(KEY)] == [2]
    (aside,) = tmp_path.glob("*.damaged-*")
    assert aside.read_bytes() == b"not a database!!" * 300


def test_a_file_that_another_process_has_begun_anew_is_not_moved_aside(tmp_path, monkeypatch):
    history = History(tmp_path / "h.sqlite")
    history.path.write_bytes(b"not a database!!" * 300)
    insert, seen = History._insert, []

    def late(self, key, row):
        """Between the failure and what follows it, somebody else moves the file aside."""
        try:
            insert(self, key, row)
        except HistoryError:
            if not seen:
                seen.append(True)
                History(history.path).append(KEY, Observation(peak=1, runtime_s=1.0))
            raise

    monkeypatch.setattr(History, "_insert", late)
    history.append(KEY, Observation(peak=2, runtime_s=1.0))
    assert [run.peak for _, run in history.read(KEY)] == [1, 2]
    assert len(list(tmp_path.glob("*.damaged-*"))) == 1


def test_a_file_that_may_be_somebody_elses_is_not_moved(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not a database, but long enough to look at" * 100)
    with pytest.raises(HistoryError, match=r"set memory\.history"):
        History(path).append(KEY, Observation(peak=1, runtime_s=1.0))
    assert [each.name for each in tmp_path.iterdir()] == ["notes.txt"]


def test_names_that_are_no_text_are_kept_apart(tmp_path):
    history = History(tmp_path / "h.sqlite")
    for peak, name in enumerate(("a\udcff", "a\udcfe", "a\0b", ""), start=1):
        history.append(
            TaskKey(pipeline=name, step=name, version=name), Observation(peak=peak, runtime_s=1.0)
        )
    for peak, name in enumerate(("a\udcff", "a\udcfe", "a\0b", ""), start=1):
        ((_, run),) = history.read(TaskKey(pipeline=name, step=name))
        assert run.peak == peak


def test_a_file_begun_anew_is_read_from_its_start(tmp_path):
    history = History(tmp_path / "h.sqlite")
    policy = HistoryPolicy(records=history)
    for _ in range(20):
        history.append(KEY, Observation(peak=2**30, runtime_s=60.0, version=KEY.version))
    assert policy.decide(KEY, Features(), Quantity(1), Caps()).reason.startswith("20 earlier runs")
    for length in (5, 25):
        history.path.unlink()
        for _ in range(length):
            history.append(KEY, Observation(peak=9 * 2**30, runtime_s=60.0, version=KEY.version))
        plan = policy.decide(KEY, Features(), Quantity(1), Caps())
        assert plan.reason.startswith(f"{length} earlier runs peaked at 9Gi")


def test_a_file_shrinks_after_runs_were_removed(tmp_path):
    history = History(tmp_path / "h.sqlite", keep=5000, total=5000)
    curve = [(float(k), 2**30 + k * 2**20) for k in range(32)]
    for _ in range(640):
        history.append(KEY, Observation(peak=2**30, runtime_s=1.0, curve=curve))
    before = history.path.stat().st_size
    smaller = History(history.path, keep=10, total=10)
    for _ in range(64):
        smaller.append(KEY, Observation(peak=1, runtime_s=1.0))
    assert history.path.stat().st_size < before / 4


def test_a_busy_file_makes_nobody_wait_for_somebody_elses_wait(tmp_path):
    """Each decision waits for the file on its own, none for a lock that another holds meanwhile."""
    inside, go_on = threading.Semaphore(0), threading.Event()

    class Busy(InMemoryHistory):
        def read(self, key, *, after=0, limit=400):
            inside.release()
            assert go_on.wait(60)
            return super().read(key, after=after, limit=limit)

    policy = HistoryPolicy(records=Busy())
    keys = [TaskKey(pipeline="p", step=str(number // 2)) for number in range(6)]
    threads = [
        threading.Thread(target=policy.decide, args=(key, Features(), Quantity(1), Caps()))
        for key in keys
    ]
    for thread in threads:
        thread.start()
    together = all(inside.acquire(timeout=30) for _ in keys)
    go_on.set()
    for thread in threads:
        thread.join()
    assert together


def test_the_default_place_ignores_a_relative_data_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", "data")
    assert default_path() == tmp_path / ".local" / "share" / "mlops-ext" / "history.sqlite"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_path() == tmp_path / "data" / "mlops-ext" / "history.sqlite"


def test_without_a_home_directory_the_policies_are_there_all_the_same(monkeypatch, caplog):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    policies = builtin.mlops_ext_memory_policies()
    assert set(policies) == {"fixed", "double", "history"}
    assert "for this process only" in caplog.text
    key = TaskKey(pipeline="p", step="s")
    policies["history"].observe(key, Features(), Quantity(2**30), 1.0)
    assert "1 earlier run" in policies["history"].decide(key, Features(), None, Caps()).reason


def test_an_outcome_that_is_no_number_is_left_out(tmp_path):
    history = History(tmp_path / "h.sqlite")
    good = Outcome(left=1.0, failed=0.0, kills=0.0)
    outcomes = {
        "all": good,
        "line": good._replace(left=math.nan),
        "recent": good._replace(kills=math.inf),
        "neighbours": good._replace(failed=-1.0),
        "power law": (1.0,),
    }
    history.append(KEY, Observation(peak=5, runtime_s=1.0, outcomes=outcomes))
    ((_, run),) = history.read(KEY)
    assert run.outcomes == {"all": good}
    damage(history.path, "costs", '{"all": 7, "line": [1, 2, "x"], "recent": null}', number=1)
    ((_, run),) = history.read(KEY)
    assert run.outcomes == {}
