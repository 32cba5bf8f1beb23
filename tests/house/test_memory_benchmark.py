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
    policy, curves = benchmark["memory_policy"], benchmark["_memory_curves"]
    path = tmp_path / "curves.jsonl"
    assert policy.main(["--make-curves", str(path)]) == 0
    assert len(path.read_text().splitlines()) == 60 * len(curves.SHAPES)
    ramps = [line for line in path.read_text().splitlines() if '"ramp"' in line]
    path.write_text("\n".join(ramps))
    assert policy.main(["--curves", str(path), "--json"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    waste = {result["method"]: result["waste_gbh"] for result in results}
    assert waste["in place, 0 s"] < waste["static oracle"] <= waste["static ladder"]


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


@pytest.mark.parametrize("shape", ["ramp", "late", "flat", "burst", "short"])
def test_in_place_is_never_dearer_than_the_static_ladder_however_late_resizes_come(
    benchmark, shape
):
    curves = benchmark["_memory_curves"]
    runs = [run for run in curves.make_curves(runs=24) if run.process == shape]
    waste = {method: area.waste for (_, method), area in curves.simulate(runs).items()}
    for latency_s in curves.LATENCIES_S:
        assert waste[f"in place, {latency_s} s"] <= waste["static ladder"]


def test_a_resize_in_the_simulation_takes_effect_late(benchmark):
    curves = benchmark["_memory_curves"]
    run = curves.Run(
        process="p", size=None, request=1, curve=((0.0, 0), (10.0, 95), (20.0, 95), (60.0, 120))
    )
    plan = curves.InPlace(start=curves.Quantity(100), threshold=0.9, growth=1.5)
    assert curves.run_in_place(run, plan, plan.start, 50.0)[1:] == (False, 151, 1)
    assert curves.run_in_place(run, plan, plan.start, 51.0)[1:] == (True, 100, 1)


def test_a_row_that_failed_near_its_memory_is_a_kill_and_another_failure_is_nothing(
    benchmark, tmp_path
):
    rows = [row("p", k) for k in range(34)]
    rows += [{**row("p", 40, rss=4 * GB), "status": "FAILED"}]
    rows += [{**row("p", 41), "status": "FAILED"}, {**row("p", 42), "status": "COMPLETED"}]
    path = write_trace(tmp_path / "w.csv", rows)
    tasks = benchmark["_memory_traces"].load(path, use_size=True)["p"]
    assert [task.killed for task in tasks] == [False] * 34 + [True, False]


def test_methods_are_told_of_kills_in_either_protocol(benchmark):
    traces = benchmark["_memory_traces"]
    told = []

    class Listener(benchmark["_memory_baselines"].MaxSeen):
        def kill(self, size, limit):
            told.append((size, limit))

    def task(k, *, killed):
        return traces.Task(
            size=k, peak=1e9, hours=1.0, request=2e9, submit=k, complete=k + 0.5, killed=killed
        )

    tasks = [task(k, killed=k == 3) for k in range(10)]
    traces.run_arrival(Listener(), tasks, 1.0)
    traces.run_sizey(Listener(), tasks, 0, 1.0)
    assert told == [(3, 2e9)] * 2
    traces.run_sizey(Listener(), tasks[:3], 0, 1.0, leaks=2)
    assert len(told) == 3


def test_a_leak_hardly_changes_what_the_next_tasks_get(benchmark):
    traces, policy = benchmark["_memory_traces"], benchmark["memory_policy"]
    tasks = [
        traces.Task(size=1e6, peak=1e9 + k, hours=1.0, request=4e9, submit=k, complete=k)
        for k in range(60)
    ]
    calm = traces.run_sizey(policy.Ours(1.0), tasks, 0, 1.0)
    leaky = traces.run_sizey(policy.Ours(1.0), tasks, 0, 1.0, leaks=20)
    assert leaky.kills == calm.kills
    assert leaky.waste < 1.5 * calm.waste + 1


def test_a_trace_of_htcondor_is_read_by_its_own_names(benchmark, tmp_path):
    path = tmp_path / "pool.csv"
    lines = ["Cmd,InputSize,MemoryUsage,RemoteWallClockTime,RequestMemory,QDate,CompletionDate"]
    lines += [f"sim,{k},2,7200,4,{k},{k + 7200}" for k in range(34)]
    path.write_text("\n".join(lines) + "\n")
    (task, *_) = benchmark["_memory_traces"].load(path, use_size=True)["sim"]
    assert (task.peak, task.hours, task.request) == (2 * 2**20, 2.0, 4 * 2**20)
    assert (task.size, task.submit, task.complete) == (0.0, 0.0, 7200e3)


def test_a_size_known_before_the_start_comes_before_what_was_read(benchmark, tmp_path):
    path = tmp_path / "w.csv"
    lines = ["process,input_bytes,rchar,rss,realtime,memory"]
    lines += [f"p,{k},7,5,3600000,9" for k in range(34)]
    path.write_text("\n".join(lines) + "\n")
    tasks = benchmark["_memory_traces"].load(path, use_size=True)["p"]
    assert [task.size for task in tasks] == list(range(34))
    assert [task.submit for task in tasks] == list(range(34))


def test_greedy_buckets_are_cut_where_least_is_wasted(benchmark):
    """Of 1, 1, 1, 9: one bucket wastes 6 on average, two of them less."""
    method = benchmark["_memory_baselines"].GreedyBucketing()
    np = pytest.importorskip("numpy")
    assert method.ends(np.array([1.0, 1.0, 1.0, 9.0]), np.ones(4)).tolist() == [3, 4]
    assert method.ends(np.array([5.0, 5.0, 5.0]), np.ones(3)).tolist() == [3]


def test_exhaustive_buckets_cost_what_a_draw_is_expected_to_waste(benchmark):
    np = pytest.importorskip("numpy")
    method = benchmark["_memory_baselines"].ExhaustiveBucketing()
    peaks, weights = np.array([1e9, 9e9]), np.array([3.0, 1.0])
    assert method._cost(peaks, weights, np.array([2])) == pytest.approx(6e9)
    # 1 in 1, 1 in 9, 9 in 1 and then 9, 9 in 9.
    expected = 0.75 * 0.25 * 8e9 + 0.25 * 0.75 * 1e9
    assert method._cost(peaks, weights, np.array([1, 2])) == pytest.approx(expected)
    assert method.ends(peaks, weights).tolist() == [1, 2]


def test_a_bucket_is_drawn_above_what_was_too_little_then_doubled(benchmark):
    method = benchmark["_memory_baselines"].GreedyBucketing()
    for peak in (1e9, 1e9, 1e9, 9e9):
        method.add(1.0, peak, 1.0)
    assert method.first(1.0, 5e9) in (1e9, 9e9)
    assert method.retry(1e9, 1, 1.0, 5e9) == 9e9
    assert method.retry(9e9, 1, 1.0, 5e9) == 18e9


def test_both_features_stand_in_one_table(benchmark, tmp_path, capsys):
    rows = [row("a", k, rss=(k % 7 + 1) * GB, rchar=(k % 7 + 1) * 100) for k in range(40)]
    path = write_trace(tmp_path / "flow.csv", rows)
    command = [str(path), "--feature", "both", "--quick", "--jobs", "1", "--method", "max seen"]
    assert benchmark["memory_policy"].main(command) == 0
    head, line = capsys.readouterr().out.strip().splitlines()
    assert head.split("  ")[-1].strip() == "all, no input"
    assert line.count("/") == 3
