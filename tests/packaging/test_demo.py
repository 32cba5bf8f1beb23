"""The demo runner: claims decide, noise stays away, and nothing is left behind."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def environment(make_environment):
    """An environment with a third party's demos."""
    return make_environment(HERE / "foreign")


def test_a_demo_whose_claims_hold_passes_without_noise(environment):
    done = environment.run("mlops-ext", "demo", "--only", "acme")
    assert done.returncode == 0
    assert "all 1 claims hold" in done.stdout
    assert "noise" not in done.stdout + done.stderr
    assert "acme (1/1): asking" in done.stdout, "a pipe gets a line for each thing begun"


@pytest.mark.parametrize("name", ["acme-false", "acme-crash", "acme-silent"])
def test_a_demo_that_shows_no_truth_fails(environment, name):
    done = environment.run("mlops-ext", "demo", "--only", name, "--json")
    assert done.returncode == 1
    (result,) = json.loads(done.stdout)
    assert ("the demo broke down" in result["log_tail"]) == (name == "acme-crash")


def test_a_demo_that_breaks_down_is_named(environment):
    done = environment.run("mlops-ext", "demo", "--only", "acme-crash")
    assert "1 of 1 claims hold; not finished: acme-crash" in done.stdout


def test_an_unknown_demo_suggests_the_nearest(environment):
    done = environment.run("mlops-ext", "demo", "--only", "acne")
    assert done.returncode == 1
    assert "did you mean 'acme'?" in done.stderr


def _default_signals():
    """A test run in the background, or under nohup, ignores some: a child would too."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _hanging(environment, report, **variables):
    """The demo that hangs, begun."""
    process = subprocess.Popen(
        [environment.bin / "mlops-ext", "demo", "--only", "acme-hang"],
        env={**os.environ, "HANG_REPORT": str(report), **variables},
        stdout=subprocess.DEVNULL,
        preexec_fn=_default_signals,  # noqa: PLW1509  # no threads here
    )
    _wait_until(lambda: report.exists() and report.read_text())
    return process


def _left_nothing(report):
    child, scratch = report.read_text().split()
    _wait_until(lambda: not _alive(int(child)))
    return not Path(scratch).exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_demo_cleans_up_and_leaves_nothing(environment, tmp_path, number):
    report = tmp_path / "report"
    with _hanging(environment, report) as process:
        process.send_signal(number)
        assert process.wait(100) == 130
    assert (tmp_path / "cleaning").exists()
    assert _left_nothing(report)


def test_a_second_interrupt_does_not_wait_and_leaves_nothing(environment, tmp_path):
    report = tmp_path / "report"
    with _hanging(environment, report, HANG_IN_CLEAN_UP="1") as process:
        process.send_signal(signal.SIGINT)
        _wait_until((tmp_path / "cleaning").exists)
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130
    assert _left_nothing(report)


def _alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def _wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.02)


def test_what_is_not_installed_is_skipped_with_what_to_install(environment):
    """Somebody with one extra, or none, sees what they can, and no traceback."""
    done = environment.run("mlops-ext", "demo", "--only", "zenml", "--only", "acme")
    assert done.returncode == 0
    (line,) = [line for line in done.stdout.splitlines() if "skipped" in line]
    assert line.startswith("zenml (1/2): skipped: zenml is not installed, and zenml>=")
    assert line.endswith("run: pip install 'mlops-ext[zenml]'")
    assert "all 1 claims hold" in done.stdout


def test_with_no_framework_there_is_nothing_to_show_and_nothing_wrong(environment):
    names = ("zenml", "clearml", "kserve", "joblib")
    done = environment.run("mlops-ext", "demo", *(f"--only={name}" for name in names), "--json")
    assert done.returncode == 0
    results = json.loads(done.stdout)
    assert [(result["name"], bool(result["skipped"])) for result in results] == [
        (name, True) for name in names
    ]
