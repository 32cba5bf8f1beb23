"""How runs on `local_oom` end: at a cap, by a stop, by Ctrl-C, with the orchestrator killed."""

import signal
import threading
import time
from types import SimpleNamespace
from uuid import uuid4

import pytest
from tests.support.processes import PATIENCE_S, gone
from tests.support.zenml_project import reported

from zenml_ext.local import process

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]  # a run takes about 20 s

FAILURES = """
    from pathlib import Path
    from zenml import pipeline, step
    from zenml.client import Client

    HERE = Path(__file__).parent

    def eat(mib):
        data = bytearray(mib * 1024**2)
        data[::4096] = b"x" * len(data[::4096])
        return len(data)

    @step(settings={"orchestrator": {"memory": "400Mi", "max_memory": "500Mi"}})
    def never_fits() -> int:
        return eat(900)

    @step
    def below(eaten: int) -> int:
        return eaten

    @step(settings={"orchestrator": {"memory": "1Gi", "retry_memory_error": True}})
    def raises_memory_error() -> int:
        first = HERE / "memory_error.first"
        if not first.exists():
            first.touch()
            raise MemoryError("by itself")
        return 1

    @pipeline(enable_cache=False, execution_mode="continue_on_failure")
    def failures():
        below(never_fits())
        raises_memory_error()

    def main():
        Client().activate_stack("oom")
        try:
            failures()
        except Exception as error:
            print("RAISED", type(error).__name__, error, flush=True)
        report("failures")
"""

ENDLESS = """
    import os, time
    from pathlib import Path
    from zenml import pipeline, step
    from zenml.client import Client

    HERE = Path(__file__).parent

    @step
    def endless() -> int:
        (HERE / "endless.pid").write_text(str(os.getpid()))
        while True:
            time.sleep(0.1)

    @pipeline(enable_cache=False)
    def endless_pipeline():
        endless()

    def main():
        Client().activate_stack("oom")
        endless_pipeline()
"""


@pytest.fixture(scope="module")
def failures(zenml_home):
    output, report = zenml_home.run(zenml_home.script("failures", FAILURES))
    assert report, output
    report["output"] = output
    report["by_name"] = {s["name"]: s for s in report["steps"]}
    return report


def attempts(report, step):
    recorded = report["by_name"][step]["metadata"]["memory_attempts"]
    return [(a["memory"], a["outcome"]) for a in recorded]


def test_a_step_that_cannot_fit_fails_at_the_cap_and_says_so(failures):
    assert attempts(failures, "never_fits") == [
        ("400Mi", "killed for memory"),
        ("500Mi", "killed for memory"),
    ]
    assert failures["by_name"]["never_fits"]["status"] == "failed"
    assert "the cap is 500Mi (the setting max_memory)" in failures["output"]
    assert "RAISED RuntimeError Failed steps: never_fits." in failures["output"]
    assert failures["status"] == "failed"


def test_what_depends_on_a_failed_step_is_skipped(failures):
    assert "below" not in failures["by_name"]
    assert "Skipped: below." in failures["output"]


def test_a_memory_error_is_retried_where_the_user_wants_it(failures):
    assert attempts(failures, "raises_memory_error") == [
        ("1Gi", "memory error"),
        ("2Gi", "completed"),
    ]


HISTORY = """
    from types import SimpleNamespace
    from zenml.client import Client
    from zenml_ext.memory.history import past_attempts

    for name in ("never_fits", "raises_memory_error"):
        step = Client().list_run_steps(name=name, hydrate=True)[0]
        facts = SimpleNamespace(name=name, pipeline="failures", step=step)
        found = [(a.memory.human, a.outcome) for a in past_attempts(facts)]
        print("HISTORY", name, found)
"""


def test_kills_count_in_the_history_of_a_step_also_where_it_never_completed(failures, zenml_home):
    """What the orchestrator on Kubernetes reads from ZenML's server."""
    output = zenml_home.ask(HISTORY)
    killed = "[('400Mi', 'killed for memory'), ('500Mi', 'killed for memory')]"
    assert f"HISTORY never_fits {killed}" in output, output
    assert "HISTORY raises_memory_error [('2Gi', 'completed')]" in output


NEIGHBOUR = """
    from zenml import pipeline, step

    @step
    def never_fits() -> int:
        return 1

    @pipeline(enable_cache=False)
    def neighbour():
        never_fits()

    def main():
        neighbour()
        report("neighbour")
"""


def test_a_neighbours_step_of_the_same_name_pushes_no_run_out_of_the_history(failures, zenml_home):
    _, report = zenml_home.run(zenml_home.script("neighbour", NEIGHBOUR))
    assert report["status"] == "completed"
    crowded = HISTORY.replace('"raises_memory_error"', "").replace(
        "    for name",
        "    from zenml_ext.memory import history\n    history._HISTORY = history._ASKED = 1\n    for name",
        1,
    )
    output = zenml_home.ask(crowded)
    assert "[('400Mi', 'killed for memory'), ('500Mi', 'killed for memory')]" in output, output


DYNAMIC = """
    import os
    from zenml import pipeline, step
    from zenml.client import Client

    @step(runtime="isolated", settings={"orchestrator": {"memory": "500Mi"}})
    def hungry() -> int:
        data = bytearray(600 * 1024**2)
        data[::4096] = b"x" * len(data[::4096])
        return len(data)

    @step(runtime="inline")
    def after(eaten: int) -> int:
        return eaten

    @pipeline(dynamic=True, enable_cache=False)
    def dynamic():
        after(hungry())

    def main():
        Client().activate_stack("oom")
        dynamic()
        report("dynamic")
"""


@pytest.mark.slow
def test_an_isolated_step_of_a_dynamic_pipeline_runs_again_with_more(zenml_home):
    output, report = zenml_home.run(zenml_home.script("dynamic", DYNAMIC))
    assert report["status"] == "completed", output
    report["by_name"] = {s["name"]: s for s in report["steps"]}
    assert [outcome for _, outcome in attempts(report, "hungry")] == [
        "killed for memory",
        "completed",
    ]
    assert [(s["name"], s["version"]) for s in report["steps"]] == [("hungry", 1), ("after", 1)]


@pytest.fixture
def endless(zenml_home):
    """A run whose one step goes on forever: the client's process, and the step's pid."""
    marker = zenml_home.code / "endless.pid"
    marker.unlink(missing_ok=True)
    script = zenml_home.script("endless", ENDLESS)
    client = zenml_home.start(script)
    try:
        yield client, int(written(marker, by=client))
    finally:
        client.kill()
        client.communicate(timeout=PATIENCE_S)


def written(marker, *, by):
    """The text of a file, as soon as process *by* has written it."""
    deadline = time.monotonic() + PATIENCE_S
    while not marker.exists() or not marker.read_text():
        assert by.poll() is None, by.stdout.read()
        assert time.monotonic() < deadline, f"{marker.name} was never written"
        time.sleep(0.05)
    return marker.read_text()


def poll(zenml_home):
    return reported(zenml_home.ask("report('endless_pipeline')"))


def test_a_stop_from_elsewhere_ends_the_step_and_the_run(zenml_home, endless):
    client, pid = endless
    run = poll(zenml_home)
    assert run["status"] == "running"
    zenml_home.command("zenml", "pipeline", "runs", "stop", run["id"], "--yes", check=False)
    assert gone(pid)
    client.wait(PATIENCE_S)
    run = poll(zenml_home)
    assert run["status"] == "stopped"
    assert [s["status"] for s in run["steps"]] == ["stopped"]


def test_ctrl_c_stops_the_step_and_the_run(zenml_home, endless):
    client, pid = endless
    client.send_signal(signal.SIGINT)
    assert gone(pid)
    assert client.wait(PATIENCE_S)
    run = poll(zenml_home)
    assert run["status"] == "stopped"
    assert [s["status"] for s in run["steps"]] == ["stopped"]


def test_a_killed_orchestrator_leaves_no_step_behind(endless):
    client, pid = endless
    client.kill()
    assert gone(pid)


@pytest.mark.parametrize("exit_code", [0, 137])
def test_a_step_that_has_published_its_result_is_done_whatever_was_killed(
    monkeypatch, caplog, tmp_path, exit_code
):
    """A kill can come between the publishing of the result and the end of the process."""
    local_step = pytest.importorskip("zenml_ext.local.step")
    from zenml.enums import ExecutionStatus

    from mlops_ext.memory import Features, MemoryPlan, Quantity, TaskKey
    from zenml_ext.local.budget import MemoryBudget
    from zenml_ext.local.dag import State
    from zenml_ext.local.settings import LocalOomSettings

    runs = []

    def run(*command, **options):
        runs.append(command)
        return process.Termination(
            exit_code=exit_code, oom_killed=True, peak=Quantity(5), runtime_s=1, stopped=False
        )

    monkeypatch.setattr(local_step.process, "run", run)
    monkeypatch.setattr(local_step, "record", lambda *_: None)
    # Else ZenML asks for the file of the main module, which is none where pytest-xdist started it.
    monkeypatch.setattr("zenml.utils.source_utils._CUSTOM_SOURCE_ROOT", str(tmp_path))
    step_run = SimpleNamespace(id="row", status=ExecutionStatus.COMPLETED)
    monkeypatch.setattr(local_step.StepJob, "_latest_step_run", lambda _: step_run)
    facts = SimpleNamespace(
        settings=LocalOomSettings(), key=TaskKey(pipeline="p", step="careless"), is_elsewhere=False
    )
    job = local_step.StepJob(
        name="careless",
        facts=facts,
        snapshot_id=uuid4(),
        run_id="run",
        environment={},
        policy=SimpleNamespace(observe=lambda *_, **__: None),
        plan=MemoryPlan(ladder=(Quantity(9),), reason="as asked"),
        features=Features(),
        budget=MemoryBudget(100),
        stopping=threading.Event(),
    )
    with caplog.at_level("WARNING"):
        assert job.run() is State.COMPLETED
    assert len(runs) == 1
    assert "one of its processes was killed for memory" in caplog.text
