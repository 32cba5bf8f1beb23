"""`local_oom` on real ZenML: its embedded store, real processes, real kills."""

import sys
import textwrap
import threading

import pytest
from tests.support.zenml_project import reported

from mlops_ext.memory import Quantity
from zenml_ext.local import process

pytestmark = pytest.mark.timeout(600)  # a run takes about 40 s on a free machine

PIPELINE = '''
    import subprocess, sys, time
    from pathlib import Path
    from zenml import pipeline, step
    from zenml.client import Client
    from zenml.config.retry_config import StepRetryConfig

    HERE = Path(__file__).parent

    def eat(mib):
        """Use *mib* MiB, really."""
        data = bytearray(mib * 1024**2)
        data[::4096] = b"x" * len(data[::4096])
        return len(data)

    LIMITED = {"orchestrator": {"memory": "500Mi"}}

    @step(settings=LIMITED)
    def hungry() -> int:
        return eat(600)

    @step
    def after(eaten: int) -> int:
        return eaten

    @step(settings=LIMITED, retry=StepRetryConfig(max_retries=1, delay=0))
    def flaky_and_hungry() -> int:
        first = HERE / "flaky.first"
        if not first.exists():
            first.touch()
            raise RuntimeError("fails once by itself")
        return eat(600)

    def meet(mine, other):
        (HERE / mine).touch()
        for _ in range(4000):  # the other may be the last to start, on a busy machine
            if (HERE / other).exists():
                return True
            time.sleep(0.1)
        raise RuntimeError("the other step does not run beside this one")

    @step
    def left() -> bool:
        return meet("left", "right")

    @step
    def right() -> bool:
        return meet("right", "left")

    @step(settings=LIMITED)
    def waits_for_workers() -> int:
        """As a pool of processes: goes on waiting when one of its workers is killed."""
        code = "x = bytearray(480 * 1024**2); x[::4096] = b'x' * len(x[::4096])"
        while subprocess.run([sys.executable, "-c", code]).returncode:
            time.sleep(100)
        return 1

    @step(settings=LIMITED)
    def loader() -> int:
        """As a data loader: fails when one of its workers is killed."""
        code = "x = bytearray(480 * 1024**2); x[::4096] = b'x' * len(x[::4096])"
        subprocess.run([sys.executable, "-c", code], check=True)
        return 1

    @pipeline(enable_cache=False)
    def survivors():
        loader()
        after(hungry())
        flaky_and_hungry()
        left()
        right()
        waits_for_workers()

    def main(stack="oom"):
        Client().activate_stack(stack)
        survivors()
        report("survivors")
'''


@pytest.fixture(scope="module")
def survivors(zenml_home):
    """One run of a pipeline whose steps are killed, fail, and wait for each other."""
    output, report = zenml_home.run(zenml_home.script("survivors", PIPELINE))
    assert report, output
    report["output"] = output
    report["attempts"] = {
        s["name"]: s["metadata"].get("memory_attempts", []) for s in report["steps"]
    }
    report["rows"] = {}
    for step in report["steps"]:
        report["rows"].setdefault(step["name"], []).append((step["version"], step["status"]))
    return report


DOUBLED = Quantity.parse("1000Mi").human


def outcomes(report, step):
    return [(a["memory"], a["outcome"]) for a in report["attempts"][step]]


def test_the_run_completes(survivors):
    assert survivors["status"] == "completed", survivors["output"]


def test_a_step_killed_for_memory_runs_again_with_more_in_the_same_step_run(survivors):
    assert outcomes(survivors, "hungry") == [
        ("500Mi", "killed for memory"),
        (DOUBLED, "completed"),
    ]
    assert survivors["rows"]["hungry"] == [(1, "completed")]
    assert survivors["rows"]["after"] == [(1, "completed")]


def test_the_users_own_retries_and_ours_are_two_budgets(survivors):
    assert outcomes(survivors, "flaky_and_hungry") == [
        ("500Mi", "failed"),
        ("500Mi", "killed for memory"),
        (DOUBLED, "completed"),
    ]
    assert survivors["rows"]["flaky_and_hungry"] == [(1, "retried"), (2, "completed")]


def test_independent_steps_run_side_by_side(survivors):
    assert survivors["rows"]["left"] == survivors["rows"]["right"] == [(1, "completed")]


def test_a_step_with_a_killed_child_is_ended_and_runs_again_with_more(survivors):
    assert outcomes(survivors, "waits_for_workers") == [
        ("500Mi", "killed for memory"),
        (DOUBLED, "completed"),
    ]
    assert survivors["rows"]["waits_for_workers"] == [(1, "completed")]


def test_a_step_that_fails_because_its_child_was_killed_runs_again_with_more(survivors):
    assert outcomes(survivors, "loader") == [
        ("500Mi", "killed for memory"),
        (DOUBLED, "completed"),
    ]
    assert survivors["rows"]["loader"] == [(1, "completed")]


def test_metadata_of_step_and_run_tell_every_attempt(survivors):
    recorded = survivors["metadata"]["memory_attempts.hungry"]
    first, second = recorded
    assert recorded == survivors["attempts"]["hungry"]
    assert (first["number"], second["number"]) == (1, 2)
    assert first["memory_bytes"] == 500 * 1024**2
    assert first["peak_bytes"] >= 400 * 1024**2
    assert 500 * 1024**2 < second["peak_bytes"] < 1000 * 1024**2
    assert first["lost_s"] == first["runtime_s"] > 0
    assert second["lost_s"] == 0
    assert "500Mi" in second["reason"]
    assert "memory_attempts.after" not in survivors["metadata"]
    (step,) = [s for s in survivors["steps"] if s["name"] == "after"]
    assert int(step["metadata"]["memory_peak"]) > 0


def test_memory_shows_attempts_waste_and_the_next_limit(survivors, zenml_home, tmp_path):
    picture = tmp_path / "memory.svg"
    shown = zenml_home.command(
        "mlops-ext", "zenml", "memory", survivors["id"], "--plot", picture, COLUMNS="200"
    )
    assert "killed for memory" in shown
    assert "GB-hours" in shown
    assert "Next time hungry starts with" in shown
    assert "killed" in picture.read_text()
    assert "<svg" in picture.read_text()


def test_suggested_settings_are_yaml_that_zenml_reads(survivors, zenml_home):
    yaml = pytest.importorskip("yaml")
    shown = zenml_home.command(
        "mlops-ext", "zenml", "memory", "--pipeline", "survivors", "--suggest"
    )
    memory = yaml.safe_load(shown)["steps"]["hungry"]["settings"]["orchestrator"]["memory"]
    assert int(memory.removesuffix("Mi")) > 600


def test_an_unknown_run_or_pipeline_is_one_line_that_helps(survivors, zenml_home):
    done = zenml_home.command(
        "mlops-ext", "zenml", "memory", "--pipeline", "survivers", check=False
    )
    assert done.returncode == 1
    assert "did you mean 'survivors'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_registering_again_changes_nothing(zenml_home):
    assert "local_oom: registered" in zenml_home.registered
    name = "local_oom_orchestrator"
    assert f"zenml orchestrator register {name} --flavor local_oom" in zenml_home.registered
    assert f"zenml stack register local_oom_stack -a default -o {name}" in zenml_home.registered
    again = zenml_home.command("mlops-ext", "zenml", "register")
    assert "local_oom: already registered" in again


def test_a_flavor_that_a_stack_uses_gets_its_new_settings(zenml_home):
    flavor = """
        from zenml.client import Client
        from zenml.enums import StackComponentType
        from zenml.models import FlavorUpdate
        client = Client()
        found = client.get_flavor_by_name_and_type("local_oom", StackComponentType.ORCHESTRATOR)
    """
    older = (
        "client.zen_store.update_flavor(found.id, FlavorUpdate(config_schema={'properties': {}}))"
    )
    zenml_home.ask(textwrap.dedent(flavor) + older)
    again = zenml_home.command("mlops-ext", "zenml", "register")
    assert "local_oom: registered again" in again
    shown = zenml_home.ask(
        textwrap.dedent(flavor) + "print(found.id, *found.config_schema['properties'])"
    )
    assert "memory" in shown.split()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--max_memory=lots"], "max_memory"),
        (["--oom_retries=-1"], "greater than or equal to 0"),
        (["--temp_dir=scratch"], "absolute path"),
    ],
)
@pytest.mark.slow
def test_registration_refuses_a_wrong_value(zenml_home, options, expected):
    command = ["zenml", "orchestrator", "register", "x", "--flavor", "local_oom", *options]
    done = zenml_home.command(*command, check=False)
    assert done.returncode
    assert expected in done.stdout + done.stderr


def test_bare_zenml_loses_the_run_at_the_same_limit(zenml_home):
    """The claim's other half: ZenML's own local orchestrator under the same 500 MiB."""
    script = zenml_home.script("bare", PIPELINE.replace("survivors", "bare"))
    with (zenml_home.folder / "bare.log").open("wb") as output:
        termination = process.run(
            [sys.executable, str(script), "default"],
            environment=zenml_home.environment(),
            limit=500 * 1024**2,
            stopping=threading.Event(),
            grace_s=1,
            output=output,
        )
    assert termination.oom_killed
    assert termination.exit_code == 137
    report = reported(zenml_home.ask("report('bare')"))
    assert report["status"] != "completed"
    assert report["steps"][-1]["status"] == "running"  # and so it stays
