"""ZenML pipelines on a real cluster: what the double cannot promise.

Runs against whatever these name, and is skipped where one is missing:

* ``KUBECONFIG``: a cluster of Kubernetes 1.33 or later, context ``MLOPS_EXT_TEST_CONTEXT`` (default
  ``local``), in which the namespace ``zenml`` may be made and used;
* ``MLOPS_EXT_TEST_IMAGE``: an image with Python, ZenML, its Kubernetes integration and mlops-ext;
* ``ZENML_STORE_URL`` (and its credentials): a ZenML server that pods reach;
* ``MLOPS_EXT_TEST_STORE``: a folder that this machine and the nodes share by the same path.
"""

import json
import os
import random
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tests.kubedouble.pipelines import FOOTER, HEADER, SETUP, Outcome

NEEDED = ("KUBECONFIG", "MLOPS_EXT_TEST_IMAGE", "ZENML_STORE_URL", "MLOPS_EXT_TEST_STORE")
MISSING = [name for name in NEEDED if not os.environ.get(name)]
pytestmark = [
    pytest.mark.needs_cluster,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(MISSING), reason=f"not set: {', '.join(MISSING)}"),
]
STORE = os.environ.get("MLOPS_EXT_TEST_STORE", "")
CONTEXT = os.environ.get("MLOPS_EXT_TEST_CONTEXT", "local")
COMMON = f"STORE = {STORE!r}  # as text: a dynamic pipeline is read again inside the cluster\n"
COMMON += """
MOUNT = {
    "volumes": [{"name": "store", "hostPath": {"path": STORE}}],
    "volume_mounts": [{"name": "store", "mountPath": STORE}],
}
BARE = os.environ.get("TEST_STACK") == "bare"

def orchestrator(limit=None, **more):
    if BARE:
        more = {}
    pod = {**MOUNT, "resources": {"limits": {"memory": limit}, "requests": {"memory": limit}}}
    return {"orchestrator": {
        "orchestrator_pod_settings": MOUNT, "pod_settings": pod if limit else MOUNT, **more}}

# nothing learnt from earlier runs, nothing resized
COLD = {"memory_policy": "double", "in_place": False}
"""
ROLE = """
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: mlops-ext-resize, namespace: zenml}
rules: [{apiGroups: [""], resources: ["pods/resize"], verbs: ["patch"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: mlops-ext-resize, namespace: zenml}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: mlops-ext-resize}
subjects: [{kind: ServiceAccount, name: default, namespace: zenml}]
"""


def kubectl(*arguments, text=None):
    command = ["kubectl", "--context", CONTEXT, "-n", "zenml", *arguments]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def objects(kind, labels=""):
    return json.loads(kubectl("get", kind, "-l", labels, "-o", "json").stdout)["items"]


class Project:
    """A client of the ZenML server with the stacks ``bare`` and ``ours``."""

    def __init__(self, home):
        self.home = home
        (home / ".zen").mkdir()
        setup = SETUP.replace(
            '"kubernetes_context": "double"',
            f'"incluster": True, "kubernetes_context": "{CONTEXT}"',
        )
        setup = setup.replace('"local": True,', "").replace('"job_monitoring_interval": 1.0,', "")
        store = (
            'client.create_stack_component("shared", flavor="local",'
            f' component_type=Kind.ARTIFACT_STORE, configuration={{"path": {STORE!r}}})\n'
        )
        setup = setup.replace("for name, flavor", store + "for name, flavor")
        setup = setup.replace('Kind.ARTIFACT_STORE: "default"', 'Kind.ARTIFACT_STORE: "shared"')
        done = self._run("-c", f"{GUARD}{textwrap.indent(setup, '    ')}")
        assert done.returncode == 0, done.stdout + done.stderr

    def _environment(self, stack):
        return {
            **os.environ,
            "ZENML_CONFIG_PATH": str(self.home / "config"),
            "ZENML_ANALYTICS_OPT_IN": "false",
            "ZENML_ENABLE_RICH_TRACEBACK": "false",
            "TEST_STACK": stack,
        }

    def _run(self, *arguments):
        return self._call(sys.executable, *arguments)

    def command(self, *words):
        return self._call(str(Path(sys.executable).parent / words[0]), *words[1:])

    def _call(self, *command):
        return subprocess.run(
            command,
            env=self._environment("ours"),
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    def start(self, code, stack="ours"):
        image = os.environ["MLOPS_EXT_TEST_IMAGE"]
        header = HEADER.replace("localhost/zenml:test", image) + COMMON
        (self.home / "run_it.py").write_text(header + textwrap.dedent(code) + FOOTER)
        return subprocess.Popen(
            [sys.executable, "run_it.py"],
            env=self._environment(stack),
            cwd=self.home,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, process):
        output, _ = process.communicate(timeout=1100)
        lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
        assert lines, output
        found = json.loads(lines[-1].removeprefix("RESULT "))
        return Outcome(status=found["status"], error=found["error"], run=found, output=output)

    def run(self, code, stack="ours"):
        return self.finish(self.start(code, stack))


GUARD = """
from zenml.client import Client
if not Client().list_stacks(name="ours").total:
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    kubectl("create", "namespace", "zenml")
    return Project(tmp_path_factory.mktemp("project"))


def orchestrator_log(found):
    """What the orchestrator's pods of a run have printed."""
    return kubectl("logs", "-l", f"run_id={found.run['id']},!step_name", "--tail=-1").stdout


def outcomes(found, step):
    return [attempt["outcome"] for attempt in found.attempts(step)]


HUNGRY = """
@step(enable_cache=False, settings=orchestrator("600Mi", **COLD))
def hungry() -> int:
    return eat(700, 5)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator(**COLD)})
def the_pipeline():
    hungry()
"""


def test_the_step_that_fails_on_zenml_completes_after_one_kill(project):
    assert project.run(HUNGRY, "bare").statuses() == {"hungry": "failed"}
    found = project.run(HUNGRY)
    assert found.status == "completed", found.output
    assert outcomes(found, "hungry") == ["killed for memory", "completed"]


GROWING = """
@step(enable_cache=False, settings=orchestrator("500Mi", memory_policy="double"))
def growing() -> int:
    return eat(900, 20)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator()})
def the_pipeline():
    growing()
"""


def test_a_growing_step_is_resized_and_never_restarted_where_it_may(project):
    kubectl("delete", "rolebinding", "mlops-ext-resize")
    refused = project.run(GROWING)
    assert refused.status == "completed", refused.output
    assert "killed for memory" in outcomes(refused, "growing")
    kubectl("apply", "-f", "-", text=ROLE)
    found = project.run(GROWING)
    assert found.status == "completed", found.output
    assert outcomes(found, "growing") == ["completed"]
    assert "grown in place" in found.attempts("growing")[0]["reason"]
    (pod,) = objects("pods", f"run_id={found.run['id']},step_name=growing")
    assert pod["status"]["containerStatuses"][0]["restartCount"] == 0


CAUSES = """
import subprocess, tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from zenml.enums import ExecutionMode

@step(enable_cache=False, settings=orchestrator("700Mi", **COLD))
def child() -> int:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(eat, 600).result()

@step(enable_cache=False, settings=orchestrator("700Mi", **COLD))
def child_ignored() -> int:
    code = "b = bytearray(1000 << 20); b[::4096] = b'x' * len(b[::4096])"
    return subprocess.run([sys.executable, "-c", code]).returncode

@step(enable_cache=False,
      settings=orchestrator(memory="900Gi", pending_timeout_min=0.2, **COLD))
def never() -> int:
    return 1

def place(volume, **more):
    temp = {"path": "/scratch", "volume": volume, **more}
    return orchestrator(temp_dir=temp, **COLD)

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

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator(**COLD)},
          execution_mode=ExecutionMode.CONTINUE_ON_FAILURE)
def the_pipeline():
    child(); child_ignored(); never(); temp_empty(); temp_host(); temp_claim()
    too_much_disk()
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


def test_children_that_are_killed_what_never_fits_and_temporary_directories(project):
    kubectl("delete", "pv", "mlops-ext-scratch", "--wait=false")
    kubectl("apply", "-f", "-", text=VOLUME)
    found = project.run(CAUSES)
    assert found.statuses() == {
        "child": "completed",
        "child_ignored": "completed",
        "never": "failed",
        "temp_empty": "completed",
        "temp_host": "completed",
        "temp_claim": "completed",
        "too_much_disk": "failed",
    }, found.output
    assert outcomes(found, "child") == ["killed for memory", "completed"]
    assert outcomes(found, "child_ignored") == ["completed"]
    logs = orchestrator_log(found)
    assert "it asks for 900Gi" in logs
    assert "evicted" in logs
    assert "for its use of disk, not of memory" in logs


DYNAMIC = """
# inside the cluster ZenML would try to make an account where none is named
ACCOUNT = {"service_account_name": "zenml-service-account"}

@step(enable_cache=False, runtime="isolated", settings=orchestrator("600Mi", **COLD, **ACCOUNT))
def hungry(number: int) -> int:
    return eat(700, 5)

@step(enable_cache=False)
def light() -> int:
    return 2

@pipeline(dynamic=True, enable_cache=False,
          settings={"docker": docker, **orchestrator(**COLD, **ACCOUNT)})
def the_pipeline():
    hungry(light())
"""


def test_a_dynamic_pipelines_step_is_run_again(project):
    found = project.run(DYNAMIC)
    assert found.status == "completed", found.output
    assert outcomes(found, "hungry") == ["killed for memory", "completed"]


TEN = """
@step(enable_cache=False, settings=orchestrator(**COLD))
def big(number: int) -> int:
    return eat(1000, 10)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator(**COLD)})
def the_pipeline():
    for number in range(10):
        big(number, id=f"big_{number}")
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


CHAIN = """
def body():
    return eat(700, 12)

@step(enable_cache=False, settings=orchestrator("600Mi", **COLD))
def one() -> int:
    return body()

@step(enable_cache=False, settings=orchestrator("600Mi", **COLD))
def two(number: int) -> int:
    return body()

@step(enable_cache=False, settings=orchestrator("900Mi", **COLD))
def beside() -> int:
    return body()

@step(enable_cache=False, settings=orchestrator("600Mi", **COLD))
def last(number: int, other: int) -> int:
    return body()

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator(**COLD)})
def the_pipeline():
    last(two(one()), beside())
"""
KILLS, RUNS, MOST = 10, 3, 4
"""Kubernetes waits 10, 20, 40, 80, 160 s before it starts a Job's next pod: ten kills of one Job
would take an hour, so they are spread over runs side by side."""


class Killer:
    """Kills orchestrators' pods at random moments after their start."""

    def __init__(self):
        self.due, self.killed, self.overlaps = {}, [], []

    def look(self):
        pods = [pod for pod in objects("pods", "run_id") if pod["status"]["phase"] == "Running"]
        labels = [pod["metadata"]["labels"] for pod in pods]
        steps = [(one["run_id"], one["step_name"]) for one in labels if "step_name" in one]
        self.overlaps += [step for step in steps if steps.count(step) > 1]
        now = time.monotonic()
        for pod in pods:
            name, run = pod["metadata"]["name"], pod["metadata"]["labels"]["run_id"]
            if "step_name" in pod["metadata"]["labels"] or (name, run) in self.killed:
                continue
            due = self.due.setdefault(name, now + random.uniform(0, 15))
            of_run = sum(run == other for _, other in self.killed)
            if now > due and len(self.killed) < KILLS and of_run < MOST:
                kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")
                self.killed.append((name, run))


def test_orchestrators_that_die_lose_no_step_and_run_none_twice_at_once(project):
    processes = [project.start(CHAIN) for _ in range(RUNS)]
    killer, end = Killer(), time.monotonic() + 1000
    while any(process.poll() is None for process in processes) and time.monotonic() < end:
        killer.look()
        time.sleep(0.5)
    runs = [project.finish(process) for process in processes]
    assert len(killer.killed) == KILLS
    assert killer.overlaps == []
    for found in runs:
        rows = found.statuses()
        assert rows == dict.fromkeys(("one", "two", "beside", "last"), "completed"), found.output
        assert [row["version"] for row in found.run["steps"]] == [1] * 4
        for step in ("one", "two", "last"):
            assert outcomes(found, step) == ["killed for memory", "completed"]


STOPPED = """
@step(enable_cache=False, settings=orchestrator("300Mi", **COLD))
def endless() -> int:
    return eat(500, 5) and time.sleep(600)

@pipeline(enable_cache=False, settings={"docker": docker, **orchestrator(**COLD)})
def the_pipeline():
    endless()
"""


def test_a_stop_ends_a_step_that_runs_again_with_more(project):
    process = project.start(STOPPED)
    deadline = time.monotonic() + 300
    again = "mlops-ext.io/attempt=2"
    while not [p for p in objects("pods", again) if p["status"]["phase"] == "Running"]:
        assert time.monotonic() < deadline
        time.sleep(1)
    (pod,) = objects("pods", again)
    run = pod["metadata"]["labels"]["run_id"]
    project.command("zenml", "pipeline", "runs", "stop", run, "--yes")
    found = project.finish(process)
    assert found.status == "stopped", found.output
    while [p for p in objects("pods", again) if p["status"]["phase"] == "Running"]:
        assert time.monotonic() < deadline
        time.sleep(1)
