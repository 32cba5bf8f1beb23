"""Steps beside sidecars, and on nodes that are closed for a while, on a real cluster."""

import time

from tests.cluster.project import (
    ON_A_CLUSTER,
    kubectl,
    objects,
    orchestrator_log,
    outcomes,
    running,
)

pytestmark = ON_A_CLUSTER
SIDECAR = """
SIDE = {"additional_pod_spec_args": {"init_containers": [
    {"name": "proxy", "image": docker.parent_image, "restartPolicy": "Always",
     "command": ["sleep", "3600"], "resources": {"limits": {"memory": "64Mi"}}}]}}

@step(enable_cache=False, settings=orchestrator("600Mi", SIDE))
def beside_a_sidecar() -> int:
    return eat(700)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def with_a_sidecar():
    beside_a_sidecar()

the_pipeline = with_a_sidecar
"""


def test_a_native_sidecar_is_there_in_every_attempt_and_keeps_no_job_open(project):
    found = project.run(SIDECAR)
    assert found.status == "completed", found.output
    assert outcomes(found, "beside_a_sidecar") == ["killed for memory", "completed"]
    jobs = objects("jobs", "step_name=beside_a_sidecar")
    for job in jobs:
        (proxy,) = job["spec"]["template"]["spec"]["initContainers"]
        assert proxy["restartPolicy"] == "Always"
        assert proxy["resources"]["limits"]["memory"] == "64Mi"


INIT = """
INIT = {"additional_pod_spec_args": {"init_containers": [
    {"name": "fetch", "image": docker.parent_image,
     "command": ["python", "-c", "b = bytearray(300 << 20); b[::4096] = b'x' * len(b[::4096])"],
     "resources": {"limits": {"memory": "100Mi"}}}]}}

@step(enable_cache=False, settings=orchestrator("600Mi", INIT))
def behind_a_killed_one() -> int:
    return 1

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def behind_an_init_container():
    behind_a_killed_one()

the_pipeline = behind_an_init_container
"""


def test_an_init_container_that_is_killed_is_named_and_gets_main_no_more_memory(project):
    found = project.run(INIT)
    assert found.status == "failed", found.output
    assert "init container fetch was killed for memory" in orchestrator_log(found)
    assert len(objects("jobs", f"run_id={found.run['id']},step_name")) == 1


CORDONED = """
@step(enable_cache=False, settings=orchestrator("500Mi"))
def before() -> int:
    time.sleep(45)
    return 1

@step(enable_cache=False, settings=orchestrator("500Mi"))
def after(number: int) -> int:
    return number

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def cordoned():
    after(before())

the_pipeline = cordoned
"""


def test_a_step_waits_for_a_node_that_is_closed_for_a_while(project):
    process = project.start(CORDONED)
    node = running("step_name=before")["spec"]["nodeName"]
    kubectl("cordon", node)
    try:
        deadline = time.monotonic() + 400
        while not [
            p for p in objects("pods", "step_name=after") if p["status"]["phase"] == "Pending"
        ]:
            assert time.monotonic() < deadline
            time.sleep(1)
        time.sleep(75)  # longer than an autoscaler needs for a look
    finally:
        kubectl("uncordon", node)
    found = project.finish(process)
    assert found.status == "completed", found.output
    assert outcomes(found, "after") == ["completed"]
    assert "unschedulable" in orchestrator_log(found)
