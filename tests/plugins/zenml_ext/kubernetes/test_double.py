"""The double of Kubernetes against recordings of the real one."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client, config, watch
from tests.doubles.kubernetes import Cluster
from tests.doubles.kubernetes.cgroups import Cgroup
from tests.support.processes import gone

RECORDINGS = Path(__file__).parents[3] / "data" / "kubernetes"
needs_cgroup = pytest.mark.skipif(
    not Cgroup.usable(), reason="memory cgroups and namespaces cannot be made here"
)
RUN_BY_DOUBLE = [
    "oom-main",
    "oom-child-exit3",
    "oom-child-exit0",
    "oom-failjob",
    "oom-tmpfs",
    "oom-backoff-limit-1",
    "sigkill-not-oom",
    "memoryerror",
    "exit-1",
    "success",
    "deadline",
    "badimage",
    "unschedulable",
]
IGNORED = {
    # what a double of one API server has no business to have
    "openshift-service-ca.crt",
    "observedGeneration",
    "lastProbeTime",
    "managedFields",
}


def shape(value):
    """Names of fields and the values that say something; identifiers and times are blank."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items() if k not in IGNORED}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


def verdict(items):
    """What a reader of the objects can conclude."""
    job = next(item for item in items if item["kind"] == "Job")
    conditions = [
        (c["type"], c["status"], c["reason"]) for c in job["status"].get("conditions", [])
    ]
    pods = [
        {
            "phase": pod["status"]["phase"],
            "qos": pod["status"]["qosClass"],
            "conditions": sorted(
                (c["type"], c["status"], c.get("reason"))
                for c in pod["status"].get("conditions", [])
            ),
            "states": [
                (name, state.get("exitCode"), state.get("reason"))
                for status in pod["status"].get("containerStatuses", [])
                for name, state in status["state"].items()
            ],
        }
        for pod in items
        if pod["kind"] == "Pod"
    ]
    counts = {k: job["status"].get(k) for k in ("active", "failed", "succeeded", "ready")}
    return {"conditions": conditions, "pods": pods, "counts": counts}


@pytest.fixture
def cluster():
    with Cluster() as double:
        config.load_kube_config(str(double.kubeconfig()))
        yield double


def manifest_of(recorded):
    """The Job as it was created: the recording without what the server has added."""
    spec = json.loads(json.dumps(recorded["spec"]))
    for key in (
        "selector",
        "completionMode",
        "completions",
        "parallelism",
        "suspend",
        "manualSelector",
        "podReplacementPolicy",
    ):
        spec.pop(key, None)
    template = spec["template"]
    template["metadata"]["labels"] = {"rec": "1"}
    pod = template["spec"]
    for key in ("dnsPolicy", "schedulerName", "securityContext", "terminationGracePeriodSeconds"):
        pod.pop(key, None)
    for container in pod["containers"]:
        if container["image"] == "localhost/py:probe":
            container["image"] = "localhost/zenml:test"
        for key in ("terminationMessagePath", "terminationMessagePolicy", "imagePullPolicy"):
            container.pop(key, None)
    if "activeDeadlineSeconds" in spec:
        spec["activeDeadlineSeconds"] = 1
    name = recorded["metadata"]["name"]
    return {"metadata": {"name": name, "labels": {"rec": "1"}}, "spec": spec}


@needs_cgroup
@pytest.mark.parametrize("name", RUN_BY_DOUBLE)
def test_the_double_tells_the_same_as_the_recording(cluster, name):
    recorded = json.loads((RECORDINGS / f"{name}.json").read_text())["items"]
    job = next(item for item in recorded if item["kind"] == "Job")
    # Old clients do not know every field, and insist on some that may be left out.
    client.BatchV1Api().create_namespaced_job("default", manifest_of(job), _preload_content=False)
    (created,) = cluster.list("jobs")
    assert created["spec"]["podReplacementPolicy"] == job["spec"]["podReplacementPolicy"]
    wanted = verdict(recorded)

    def found():
        items = [*cluster.list("jobs"), *cluster.list("pods")]
        return items if verdict(items) == wanted else None

    try:
        items = cluster.wait_for(found, 60)
    except TimeoutError:
        now = verdict([*cluster.list("jobs"), *cluster.list("pods")])
        pytest.fail(f"{now}\nis not\n{wanted}\n{cluster.logs()}")
    ours = next(item for item in items if item["kind"] == "Job")
    assert missing(shape(job), shape(ours)) == []
    for recorded_pod, pod in zip(
        [i for i in recorded if i["kind"] == "Pod"],
        [i for i in items if i["kind"] == "Pod"],
        strict=True,
    ):
        assert missing(shape(recorded_pod), shape(pod)) == []


def missing(recorded, ours, path=""):
    """Paths of the recording that our object lacks, or has with another type."""
    if isinstance(recorded, dict) and isinstance(ours, dict):
        found = []
        for key, value in recorded.items():
            if key not in ours:
                found.append(f"{path}.{key}")
            else:
                found += missing(value, ours[key], f"{path}.{key}")
        return found
    if isinstance(recorded, list) and isinstance(ours, list):
        if "sources" in path:
            return []
        return [
            each
            for one, other in zip(recorded, ours, strict=False)
            for each in missing(one, other, f"{path}[]")
        ]
    return [] if recorded == ours else [f"{path}: {ours}, recorded {recorded}"]


def test_label_selectors_patches_and_watches_work_as_the_client_expects(cluster):
    batch, core = client.BatchV1Api(), client.CoreV1Api()
    container = {"name": "main", "image": "nowhere:1", "command": ["true"]}
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    for name in ("a", "b"):
        meta = {"name": name, "labels": {"run_id": "1", "step_name": name}}
        batch.create_namespaced_job("default", {"metadata": meta, "spec": {"template": template}})
    found = batch.list_namespaced_job("default", label_selector="run_id=1,step_name in (a)")
    assert [job.metadata.name for job in found.items] == ["a"]
    body = {"metadata": {"labels": {"run_id": None, "old": "1"}, "annotations": {"x": "y"}}}
    patched = batch.patch_namespaced_job("a", "default", body)
    assert patched.metadata.labels == {"step_name": "a", "old": "1"}
    assert not batch.list_namespaced_job("default", label_selector="run_id=1,step_name=a").items
    with pytest.raises(client.ApiException) as caught:
        batch.create_namespaced_job(
            "default", {"metadata": {"name": "a"}, "spec": {"template": template}}
        )
    assert (caught.value.status, json.loads(caught.value.body)["reason"]) == (409, "AlreadyExists")
    seen = [
        event["object"].metadata.name
        for event in watch.Watch().stream(
            core.list_namespaced_pod, "default", timeout_seconds=3, resource_version="0"
        )
        if event["type"] == "ADDED"
    ]
    assert {name[0] for name in seen} == {"a", "b"}
    batch.delete_namespaced_job("b", "default", propagation_policy="Background")
    cluster.wait_for(lambda: not cluster.list("pods", "job-name=b"))


POD_AND_CHILD = """
import json, sys
from kubernetes import client, config
from tests.doubles.kubernetes import Cluster

with Cluster() as cluster:
    config.load_kube_config(str(cluster.kubeconfig()))
    container = {"name": "main", "image": "localhost/zenml:test",
                 "command": ["sh", "-c", "sleep 1000 & wait"]}
    spec = {"template": {"spec": {"restartPolicy": "Never", "containers": [container]}}}
    client.BatchV1Api().create_namespaced_job("default", {"metadata": {"name": "a"}, "spec": spec})

    def running():
        groups = list(cluster.kubelet.cgroups.values())
        return groups if groups and "sleep" in str(names(groups[0])) else None

    def names(group):
        return [open(f"/proc/{pid}/comm").read() for pid in group.pids()]

    (group,) = cluster.wait_for(running)
    print(json.dumps(group.pids()), flush=True)
    sys.stdin.read()
"""


@needs_cgroup
def test_pods_do_not_outlive_a_killed_test_process(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", POD_AND_CHILD],
        cwd=Path(__file__).parents[4],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        pids = json.loads(process.stdout.readline())
        assert len(pids) == 2
        process.send_signal(signal.SIGKILL)
    assert all(gone(pid) for pid in pids)
