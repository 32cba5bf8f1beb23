"""What ZenML's own orchestrator does, ours does too, on a real cluster."""

import time

from tests.cluster.project import ON_A_CLUSTER, kubectl, objects, outcomes, running

pytestmark = ON_A_CLUSTER
DYNAMIC = """
# inside the cluster ZenML would try to make an account where none is named
ACCOUNT = {"service_account_name": "zenml-service-account"}

@step(enable_cache=False, runtime="isolated", settings=orchestrator("600Mi", **ACCOUNT))
def hungry(number: int) -> int:
    return eat(700)

@step(enable_cache=False)
def light() -> int:
    return 2

@pipeline(dynamic=True, enable_cache=False,
          settings={"docker": docker, **orchestrator(**ACCOUNT)})
def dynamic_pipeline():
    hungry(light())

the_pipeline = dynamic_pipeline
"""


def test_a_dynamic_pipelines_step_is_run_again(project):
    found = project.run(DYNAMIC)
    assert found.status == "completed", found.output
    assert outcomes(found, "hungry") == ["killed for memory", "completed"]


STOPPED = """
@step(enable_cache=False, settings=orchestrator("300Mi"))
def endless() -> int:
    return eat(500) and time.sleep(600)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def stopped():
    endless()

def the_pipeline():
    mine = stopped()
    while Client().get_pipeline_run(mine.id).status.value == "stopping":
        time.sleep(1)  # until the step has heard of it
    return mine
"""


def test_a_stop_ends_a_step_that_runs_again_with_more(project):
    process = project.start(STOPPED)
    again = "step_name=endless,mlops-ext.io/attempt=2"
    run = running(again)["metadata"]["labels"]["run_id"]
    project.command("zenml", "pipeline", "runs", "stop", run, "--yes")
    found = project.finish(process)
    assert found.status == "stopped", found.output
    deadline = time.monotonic() + 120
    while [pod for pod in objects("pods", again) if pod["status"]["phase"] == "Running"]:
        assert time.monotonic() < deadline
        time.sleep(1)


SCHEDULED = """
from zenml.config.schedule import Schedule

@step(enable_cache=False, settings=orchestrator("600Mi"))
def hungry() -> int:
    return eat(700)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def scheduled():
    hungry()

def the_pipeline():
    minute = time.gmtime(time.time() + 90).tm_min  # once, and not again within the hour
    schedule = Schedule(name=f"at-{time.time_ns()}", cron_expression=f"{minute} * * * *")
    scheduled.with_options(schedule=schedule)()
    while True:
        runs = Client().list_pipeline_runs(pipeline="scheduled", sort_by="desc:created", size=1)
        if runs.total and runs[0].status.is_finished:
            return runs[0]
        time.sleep(2)
"""


def test_a_scheduled_pipelines_step_is_run_again(project):
    try:
        found = project.run(SCHEDULED)
    finally:
        kubectl("delete", "cronjobs", "--all")
    assert found.status == "completed", found.output
    assert outcomes(found, "hungry") == ["killed for memory", "completed"]


RETRIED = """
from zenml import get_step_context

@step(enable_cache=False, retry=StepRetryConfig(max_retries=1),
      settings=orchestrator("600Mi"))
def both() -> int:
    eat(700)
    if get_step_context().step_run.version == 1:
        raise RuntimeError("the step's own failure")
    return 1

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def retried():
    both()

the_pipeline = retried
"""


def test_a_kill_uses_up_none_of_the_users_own_retries(project):
    found = project.run(RETRIED)
    assert found.status == "completed", found.output
    assert [step_run["version"] for step_run in found.run["steps"]] == [1, 2]
    assert outcomes(found, "both").count("killed for memory") == 1
