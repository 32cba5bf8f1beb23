"""Nodes that are too small, and temporary directories, on a real cluster."""

import pytest
from tests.cluster.project import (
    ON_A_CLUSTER,
    kubectl,
    objects,
    orchestrator_log,
    outcomes,
    running,
    until,
)

pytestmark = ON_A_CLUSTER
NEVER = """
@step(enable_cache=False, settings=orchestrator(memory="900Gi"))
def never() -> int:
    return 1

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def never_pipeline():
    never()

the_pipeline = never_pipeline
"""
NODES = """
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: mlops-ext-nodes}
rules: [{apiGroups: [""], resources: ["nodes"], verbs: ["list"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: mlops-ext-nodes}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: mlops-ext-nodes}
subjects: [{kind: ServiceAccount, name: zenml-service-account, namespace: zenml}]
"""


def test_what_can_never_fit_fails_and_says_what_the_node_has_where_that_may_be_read(project):
    kubectl("delete", "clusterrolebinding", "mlops-ext-nodes")
    process = project.start(NEVER)
    run = running("!step_name,run_id")["metadata"]["labels"]["run_id"]
    says = ("logs", "-l", f"run_id={run},!step_name", "--tail=-1")
    until(lambda: "if any node is as large: none may be listed" in kubectl(*says).stdout)
    project.command("zenml", "pipeline", "runs", "stop", run, "--yes")
    untold = project.finish(process)
    assert untold.status == "stopped", untold.output
    kubectl("apply", "-f", "-", text=NODES)
    try:
        found = project.run(NEVER)
    finally:
        kubectl("delete", "clusterrolebinding", "mlops-ext-nodes")
    assert found.statuses() == {"never": "failed"}, found.output
    (node, *_) = objects("nodes")
    assert f"{node['metadata']['name']} has" in orchestrator_log(found)


PLACES = """
import tempfile
from zenml.enums import ExecutionMode

def place(volume, **more):
    temp = {"path": "/scratch", "volume": volume, **more}
    return orchestrator(temp_dir=temp)

@step(enable_cache=False, settings=place("emptyDir", size_limit="200Mi"))
def temp_empty() -> str:
    assert os.path.ismount("/scratch")
    return tempfile.gettempdir()

@step(enable_cache=False, settings=place("hostPath", host_path=MOUNT["volumes"][0]["hostPath"]["path"]))
def temp_host() -> str:
    assert os.path.ismount("/scratch")
    return tempfile.gettempdir()

@step(enable_cache=False, settings=place("ephemeral", size_limit="100Mi", storage_class="shared"))
def temp_claim() -> str:
    assert os.path.ismount("/scratch")
    return tempfile.gettempdir()

@step(enable_cache=False, settings=place("emptyDir", size_limit="50Mi"))
def too_much_disk() -> int:
    with open("/scratch/full", "wb") as file:
        for _ in range(200):
            file.write(os.urandom(1 << 20))
    time.sleep(300)
    return 1

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()},
          execution_mode=ExecutionMode.CONTINUE_ON_FAILURE)
def places():
    temp_empty(); temp_host(); temp_claim(); too_much_disk()

the_pipeline = places
"""
VOLUME = """
apiVersion: v1
kind: PersistentVolume
metadata: {name: mlops-ext-scratch}
spec:
  capacity: {storage: 1Gi}
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: shared
  hostPath: {path: /tmp/mlops-ext-scratch, type: DirectoryOrCreate}
"""


def test_temporary_directories_are_mounted_and_one_that_is_full_evicts_its_step(project):
    kubectl("delete", "pv", "mlops-ext-scratch", "--wait=false")
    kubectl("apply", "-f", "-", text=VOLUME)
    found = project.run(PLACES)
    assert found.statuses() == {
        "temp_empty": "completed",
        "temp_host": "completed",
        "temp_claim": "completed",
        "too_much_disk": "failed",
    }, found.output
    logs = orchestrator_log(found)
    assert "evicted" in logs
    assert "for its use of disk, not of memory" in logs


TEN = """
@step(enable_cache=False, settings=orchestrator())
def big(number: int) -> int:
    return eat(1000, 10)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def ten():
    for number in range(10):
        big(number, id=f"big_{number}")

the_pipeline = ten
"""


def test_ten_steps_without_limits_on_a_small_node_all_complete(project):
    (node, *_) = objects("nodes")
    if int(node["status"]["allocatable"]["memory"].removesuffix("Ki")) > 4 << 20:
        pytest.skip("the node has more than 4Gi for pods: bring it up with CLUSTER_RESERVED=20Gi")
    found = project.run(TEN)
    assert set(found.statuses().values()) == {"completed"}, found.output
    for number in range(10):
        kills = [one for one in outcomes(found, f"big_{number}") if one != "completed"]
        assert len(kills) <= 1
    (orchestrator,) = objects("pods", f"run_id={found.run['id']},!step_name")
    assert orchestrator["status"]["phase"] == "Succeeded"
    resources = orchestrator["spec"]["containers"][0]["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert "cpu" not in resources["limits"]
