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
from tests.support.kubernetes_objects import RECORDINGS, manifest_of, missing, shape, verdict
from tests.support.processes import gone

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


@pytest.fixture
def cluster():
    with Cluster() as double:
        config.load_kube_config(str(double.kubeconfig()))
        yield double


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
