"""The runner of all benchmarks: one table, and one that fails does not stop the others."""

import json
import sys

import pytest
from tests.support.benchmarks import loaded

FOUND = {
    "joblib_store": [
        {
            "row": "hit",
            "unit": "µs",
            "medians": {"joblib": 90.04, "diskcache": 18.0, "null": 21.0, "shared": 37.0},
        }
    ],
    "kserve_shutdown": {
        "restarts": [
            {"way": "bare", "workers": 1, "model": "async", "runs": [{"failed": "it did not start"}]},
            {
                "way": "patch",
                "workers": 1,
                "model": "async",
                "runs": [{"sent": 557, "lost": 0, "stopped": 0}, {"sent": 556, "lost": 1, "stopped": 2}],
            },
        ],
        "cost": {
            "v1": {
                "per_s": {"bare": 100, "patch": 99},
                "throughput": {"ratio": 0.99, "control": 1.01},
            }
        },
    },
    "clearml_check": {
        "workers": 10000,
        "queues": 10,
        "steps": 5,
        "rows": [{"plan": "live", "verdict": "safe", "seconds": 0.5, "peak_mib": 41.5, "requests": 2}],
    },
    "zenml_oom": {
        "api_calls_of_a_step": {"bare": 8, "ours": 8},
        "kill_to_next_pod": {
            "bare": {"seconds": 0.34, "calls": 8},
            "ours": {"seconds": 0.13, "calls": 5},
        },
        "side_by_side": {
            way: {"steps": 100, "completed": done, "seconds": 9.0, "calls_per_step": 2.1}
            for way, done in (("bare", 90), ("ours", 100))
        },
    },
    "core_start": {"bare_ms": 12.0, "armed_ms": 18.5, "more_ms": 6.5, "modules": 8},
    "memory_policy": {
        "results": [
            {"workflow": workflow, "method": method, "waste_gbh": waste, "kills": 2.0}
            for workflow in ("a", "b")
            for method, waste in (("Ponder", 20.0), ("request", 900.0), ("ours", 10.0))
        ]
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run_all():
    with loaded("run_all") as modules:
        yield modules["run_all"]


def test_every_benchmark_has_its_rows_in_one_table(run_all):
    table = run_all.table_of(FOUND)
    cells = list(zip(*(column.cells for column in table.columns), strict=True))
    assert cells == [
        ("joblib_store", "hit", "joblib 90.0 µs, diskcache 18.0 µs", "37.0 µs"),
        (
            "kserve_shutdown",
            "rolling restart, async model, workers 1: lost / by a stopped model",
            "it did not start",
            "0 / 0 of 557, 1 / 2 of 556",
        ),
        ("", "no signal, v1", "100 requests/s", "99 requests/s (x0.99 of bare; control x1.01)"),
        (
            "clearml_check",
            "check, 10,000 workers, 10 queues, 5 steps: live",
            "-",
            "safe in 0.500 s, 42 MiB, 2 requests",
        ),
        ("zenml_oom", "API calls of a step", "8", "8"),
        ("", "from a kill to the next pod", "0.34 s, 8 calls", "0.13 s, 5 calls"),
        (
            "",
            "100 steps side by side",
            "90 done in 9 s, 2.1 calls a step",
            "100 done in 9 s, 2.1 calls a step",
        ),
        (
            "core_start",
            "CPU time of a Python's start below mlops-ext run",
            "12.0 ms",
            "18.5 ms (+6.5), 8 modules more",
        ),
        (
            "memory_policy",
            "GB·h wasted / kills, ours",
            "Ponder, the least: 40 / 4; median of 2: 920 / 4",
            "20 / 4",
        ),
    ]
    assert set(FOUND) == set(run_all.BENCHMARKS)


@pytest.mark.parametrize(
    ("script", "limit_s", "found", "problem"),
    [
        ("print('[1]')", 60, [1], ""),
        ("print('[1]'); raise SystemExit(3)", 60, [1], "exit status 3"),
        ("raise SystemExit(3)", 60, None, "exit status 3"),
        ("print('a table')", 60, None, "it printed no JSON"),
        ("import time; time.sleep(300)", 0.3, None, "not done after 0.005 min"),
    ],
)
def test_a_benchmark_that_fails_is_named(
    run_all, monkeypatch, tmp_path, script, limit_s, found, problem
):
    (tmp_path / "one.py").write_text(script)
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    assert run_all.run("one", [], limit_s) == (found, problem)


def test_the_others_go_on_after_a_failure(run_all, monkeypatch, tmp_path, capsys):
    (tmp_path / "bad.py").write_text("raise SystemExit(2)")
    (tmp_path / "good.py").write_text("print('[1]')")
    monkeypatch.setattr(run_all, "HERE", tmp_path)
    monkeypatch.setattr(run_all, "BENCHMARKS", ("bad", "good"))
    monkeypatch.setattr(sys, "argv", ["run_all.py", "--json"])
    with pytest.raises(SystemExit) as ended:
        run_all.main()
    assert ended.value.code
    told = json.loads(capsys.readouterr().out)
    assert (told["good"], told["failed"]) == ([1], {"bad": "exit status 2"})
