"""The benchmark counts what the protocol says, on traces small enough to check by hand."""

import csv
import json
import math

import pytest
from tests.support.benchmarks import loaded

pytest.importorskip("numpy")

COLUMNS = ("process", "submit", "start", "complete", "realtime", "memory", "rss", "rchar", "status")
GB = 10**9
HOUR_MS = 3_600_000


@pytest.fixture(scope="module")
def benchmark():
    names = ("_memory_traces", "_memory_baselines", "_memory_curves", "memory_policy")
    with loaded(*names) as modules:
        yield modules


def write_trace(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def row(process, index, *, rss=GB, memory=4 * GB, realtime=HOUR_MS, rchar=5):
    start = index * HOUR_MS
    return {
        "process": process,
        "submit": start,
        "complete": start + realtime,
        "realtime": realtime,
        "memory": memory,
        "rss": rss,
        "rchar": rchar,
    }


def test_only_types_of_the_protocol_are_looked_at(benchmark, tmp_path):
    rows = [row("kept", k) for k in range(34)] + [row("kept", 40, rss=0)]
    rows += [row("few", k) for k in range(33)]
    rows += [row("zero", k, realtime=0 if k == 7 else 5) for k in range(50)]
    types = benchmark["_memory_traces"].load(write_trace(tmp_path / "w.csv", rows), use_size=True)
    assert {process: len(tasks) for process, tasks in types.items()} == {"kept": 34}


def test_the_split_is_that_of_scikit_learn(benchmark):
    traces = benchmark["_memory_traces"]
    split = list(traces.sizey(list(range(10)), 0))
    # RandomState(0).permutation(10) = 2 8 4 9 1 6 7 3 0 5; the first 7 are the test set.
    assert split == [(3, False), (0, False), (5, False)] + [
        (index, True) for index in (2, 8, 4, 9, 1, 6, 7)
    ]


@pytest.mark.parametrize(("ttf", "waste"), [(1.0, 1 + 2 + 1), (0.5, 0.5 + 1 + 1)])
def test_waste_is_failed_attempts_plus_what_was_left_over(benchmark, ttf, waste):
    traces, baselines = benchmark["_memory_traces"], benchmark["_memory_baselines"]
    task = traces.Task(size=1.0, peak=3e9, hours=1.0, request=1e9, submit=0, complete=1)
    score = traces.Score()
    traces.attempt(baselines.Doubling(), task, ttf, score)
    assert score.kills == 2
    assert score.waste == pytest.approx(waste)


def test_tovar_goes_on_with_the_whole_node(benchmark):
    baselines, traces = benchmark["_memory_baselines"], benchmark["_memory_traces"]
    method = baselines.Tovar(doubles=False)
    for _ in range(5):
        method.add(1.0, 1e9, 1.0)
    task = traces.Task(size=1.0, peak=3e9, hours=1.0, request=1e9, submit=0, complete=1)
    score = traces.Score()
    traces.attempt(method, task, 1.0, score)
    assert score.kills == 1
    assert score.waste == pytest.approx(1 + 128 - 3)


def test_arrival_knows_only_what_had_completed(benchmark):
    traces, baselines = benchmark["_memory_traces"], benchmark["_memory_baselines"]

    def task(submit, complete):
        return traces.Task(
            size=1.0, peak=1e9, hours=1.0, request=9e9, submit=submit, complete=complete
        )

    tasks = [task(0, 10), task(5, 15), task(10, 30)]
    score = traces.run_arrival(baselines.MaxSeen(), tasks, 1.0)
    assert score.waste == pytest.approx(8 + 8 + 0)


def test_every_method_runs_and_the_json_has_a_row_for_each(benchmark, tmp_path, capsys):
    rows = [
        row("a", k, rss=(k % 7 + 1) * GB, memory=16 * GB, rchar=(k % 7 + 1) * 100)
        for k in range(60)
    ]
    path = write_trace(tmp_path / "flow.csv", rows)
    policy = benchmark["memory_policy"]
    for protocol in ("sizey", "arrival"):
        command = [str(path), "--protocol", protocol, "--seeds", "2", "--json", "--jobs", "1"]
        assert policy.main(command) == 0
        results = json.loads(capsys.readouterr().out)["results"]
        found = {result["method"]: result for result in results}
        assert set(found) == set(policy.methods(1.0))
        assert all(result["workflow"] == "flow" for result in results)
        assert all(math.isfinite(result["waste_gbh"]) for result in results)
        assert found["author"]["kills"] == 0
        assert 0 < found["ours"]["waste_gbh"] < found["author"]["waste_gbh"]
    assert policy.main([str(path), "--quick", "--feature", "none", "--jobs", "1"]) == 0
    assert "ours" in capsys.readouterr().out


def test_ours_is_told_of_nothing_but_the_past(benchmark):
    """The size of the next task's peak must not reach its own decision."""
    traces, policy = benchmark["_memory_traces"], benchmark["memory_policy"]
    firsts = []
    for peak in (1e9, 50e9):
        method = policy.Ours(1.0)
        for k in range(20):
            method.add(1e6 + k, 1e9 + k, 1.0)
        task = traces.Task(size=2e6, peak=peak, hours=1.0, request=60e9, submit=0, complete=1)
        firsts.append(method.first(task.size, task.request))
        traces.attempt(method, task, 1.0, traces.Score())
    assert firsts[0] == firsts[1]


def test_growing_in_place_beats_the_static_oracle_on_ramps(benchmark, tmp_path, capsys):
    policy = benchmark["memory_policy"]
    path = tmp_path / "curves.jsonl"
    assert policy.main(["--make-curves", str(path)]) == 0
    assert policy.main(["--curves", str(path), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    waste = {(result["workflow"], result["method"]): result["waste_gbh"] for result in results}
    assert waste["ramp", "in place, 0 s"] < waste["ramp", "static oracle"]
    assert waste["ramp", "static oracle"] <= waste["ramp", "static ladder"]


def test_a_kill_in_place_costs_all_that_was_allocated(benchmark):
    curves = benchmark["_memory_curves"]
    run = curves.Run(
        process="p", size=None, request=1, curve=((0.0, 0), (3600.0, 10**9), (7200.0, 4 * 10**9))
    )
    plan = curves.InPlace(start=curves.Quantity(2 * 10**9), threshold=0.9, growth=1.5)
    allocated, killed, limit, resizes = curves.run_in_place(run, plan, plan.start, 0.0)
    assert (killed, resizes, limit) == (True, 0, plan.start)
    assert allocated == pytest.approx(4.0)
    assert curves.run_static(run, 4e9) == (pytest.approx(8.0), False)
    assert curves.used_area(run) == pytest.approx(5.0)


def test_in_place_is_never_dearer_than_the_static_ladder_however_late_resizes_come(
    benchmark, tmp_path, capsys
):
    path = tmp_path / "curves.jsonl"
    policy = benchmark["memory_policy"]
    assert policy.main(["--make-curves", str(path)]) == 0
    assert policy.main(["--curves", str(path), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    waste = {(result["workflow"], result["method"]): result["waste_gbh"] for result in results}
    for latency_s in benchmark["_memory_curves"].LATENCIES_S:
        for process in ("ramp", "late", "flat"):
            assert waste[process, f"in place, {latency_s} s"] <= waste[process, "static ladder"]


def test_a_resize_in_the_simulation_takes_effect_late(benchmark):
    curves = benchmark["_memory_curves"]
    run = curves.Run(
        process="p", size=None, request=1, curve=((0.0, 0), (10.0, 95), (20.0, 95), (60.0, 120))
    )
    plan = curves.InPlace(start=curves.Quantity(100), threshold=0.9, growth=1.5)
    assert curves.run_in_place(run, plan, plan.start, 50.0)[1:] == (False, 151, 1)
    assert curves.run_in_place(run, plan, plan.start, 51.0)[1:] == (True, 100, 1)
