"""Steps that are killed for memory on a real cluster, or grow before that."""

from tests.cluster.project import ON_A_CLUSTER, ROLE, kubectl, objects, outcomes

pytestmark = ON_A_CLUSTER
HUNGRY = """
@step(enable_cache=False, settings=orchestrator("600Mi"))
def hungry() -> int:
    return eat(700)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def one_hungry_step():
    hungry()

the_pipeline = one_hungry_step
"""


def test_the_step_that_fails_on_zenml_completes_after_one_kill(project):
    assert project.run(HUNGRY, "bare").statuses() == {"hungry": "failed"}
    found = project.run(HUNGRY)
    assert found.status == "completed", found.output
    assert outcomes(found, "hungry") == ["killed for memory", "completed"]


GROWING = """
@step(enable_cache=False, settings=orchestrator("500Mi"))
def growing() -> int:
    return eat(900, 20)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def PIPELINE():
    growing()

the_pipeline = PIPELINE
"""


def test_a_growing_step_is_resized_and_never_restarted_where_it_may(project):
    refused = project.run(GROWING.replace("PIPELINE", "refused_growth"))
    assert refused.status == "completed", refused.output
    assert "killed for memory" in outcomes(refused, "growing")
    kubectl("apply", "-f", "-", text=ROLE)
    found = project.run(GROWING.replace("PIPELINE", "granted_growth"))
    assert found.status == "completed", found.output
    assert outcomes(found, "growing") == ["completed"]
    assert "grown in place" in found.attempts("growing")[0]["reason"]
    (pod,) = objects("pods", f"run_id={found.run['id']},step_name=growing")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


CHILDREN = """
import subprocess
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

@step(enable_cache=False, settings=orchestrator("700Mi"))
def child() -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(eat, 600).result()

@step(enable_cache=False, settings=orchestrator("700Mi"))
def child_ignored() -> int:
    code = "b = bytearray(1000 << 20); b[::4096] = b'x' * len(b[::4096])"
    return subprocess.run([sys.executable, "-c", code]).returncode

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def children():
    child(); child_ignored()

the_pipeline = children
"""


def test_a_killed_child_counts_where_its_parent_gives_up_and_not_where_it_goes_on(project):
    found = project.run(CHILDREN)
    assert found.status == "completed", found.output
    assert outcomes(found, "child") == ["killed for memory", "completed"]
    assert outcomes(found, "child_ignored") == ["completed"]
