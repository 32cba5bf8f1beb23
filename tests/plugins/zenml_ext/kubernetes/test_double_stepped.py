"""The double without threads and processes, in virtual time: beside recordings, with several nodes."""

import json
import re

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client
from tests.doubles.kubernetes import Cluster
from tests.doubles.kubernetes.autoscaler import Autoscaler
from tests.doubles.kubernetes.direct import direct_client
from tests.doubles.kubernetes.scheduler import CORDON
from tests.support.kubernetes_objects import RECORDINGS, manifest_of, missing, shape, verdict

BESIDE = {
    "init-oom": {"double/ends-fetch": "137 OOMKilled 3"},
    "sidecar-oom": {"double/ends-proxy": "137 OOMKilled 1", "double/ends": "0 Completed 6"},
    "second-oom": {"double/ends-proxy": "137 OOMKilled 1", "double/ends": "0 Completed 3"},
    "out-of-memory": {},
    "out-of-cpu": {},
    "node-affinity": {},
}


@pytest.fixture
def stepped():
    nodes = {"node-a": {"memory": "23123076Ki", "cpu": "2", "pods": "110"}}
    with Cluster(nodes, real=False, tls=False, stepped=True) as double:
        yield double


@pytest.mark.parametrize("name", BESIDE)
def test_pods_without_processes_end_as_recorded_ones(stepped, name):
    recorded = json.loads((RECORDINGS / f"{name}.json").read_text())["items"]
    manifest = manifest_of(next(item for item in recorded if item["kind"] == "Job"))
    manifest["spec"]["template"]["metadata"]["annotations"] = BESIDE[name]
    batch = client.BatchV1Api(direct_client(stepped))
    batch.create_namespaced_job("default", manifest, _preload_content=False)
    stepped.pass_time(10)
    items = [*stepped.list("jobs"), *stepped.list("pods")]
    assert verdict(items) == verdict(recorded)
    pod, like = (next(i for i in found if i["kind"] == "Pod") for found in (items, recorded))
    if name == "sidecar-oom":  # the recorded one was between two kills as its pod ended
        for one in (pod, like):
            one["status"]["initContainerStatuses"][0].pop("state")
    assert missing(shape(like["status"]), shape(pod["status"])) == []
    if "reason" in like["status"]:
        words = [re.sub(r"used: \d+", "", one["status"]["message"]) for one in (pod, like)]
        assert words[0] == words[1]


def sleeping(stepped, name, memory):
    """A pod that sleeps with so much memory, and a client."""
    batch = client.BatchV1Api(direct_client(stepped))
    resources = {"limits": {"memory": memory}, "requests": {"memory": memory}}
    container = {"name": "main", "image": "i", "resources": resources}
    template = {
        "metadata": {"annotations": {"double/ends": "0 Completed 100"}},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
    batch.create_namespaced_job(
        "default", {"metadata": {"name": name}, "spec": {"template": template}}
    )
    stepped.settle()
    (pod,) = stepped.list("pods", f"job-name={name}")
    return pod


def wish(stepped, pod, memory):
    sizes = {"limits": {"memory": memory}, "requests": {"memory": memory}}
    body = {"spec": {"containers": [{"name": "main", "resources": sizes}]}}
    direct_client(stepped).call_api(
        f"/api/v1/namespaces/default/pods/{pod['metadata']['name']}/resize",
        "PATCH",
        header_params={"Content-Type": "application/strategic-merge-patch+json"},
        body=body,
    )
    return stepped.kubelet.pod(pod["metadata"]["uid"])


def resources(pod):
    """What a pod's resize has come to: wished, given, allocated, and why it waits."""
    status = pod["status"]["containerStatuses"][0]
    return (
        pod["spec"]["containers"][0]["resources"],
        status["resources"],
        status["allocatedResources"],
        [
            (one["status"], one["reason"], re.sub(r"used: \d+", "", one["message"]))
            for one in pod["status"]["conditions"]
            if one["type"] == "PodResizePending"
        ],
        pod["metadata"]["generation"],
    )


@pytest.mark.parametrize(("name", "memory"), [("done", "100Mi"), ("deferred", "18Gi")])
def test_a_resize_comes_to_what_was_recorded(stepped, name, memory):
    (recorded,) = json.loads((RECORDINGS / "resizes" / f"{name}.json").read_text())["items"]
    sleeping(stepped, "filler", "6Gi")
    pod = wish(stepped, sleeping(stepped, "one", "64Mi"), memory)
    assert resources(pod) == resources(recorded)


def test_a_deferred_wish_counts_for_the_scheduler_until_it_is_withdrawn_or_granted(stepped):
    sleeping(stepped, "filler", "10Gi")
    pod = sleeping(stepped, "one", "1Gi")
    wish(stepped, pod, "20Gi")
    third = sleeping(stepped, "third", "4Gi")
    assert "nodeName" not in third["spec"]  # though 12 GiB are free
    wish(stepped, pod, "1Gi")
    stepped.settle()
    assert stepped.list("pods", "job-name=third")[0]["spec"]["nodeName"] == "node-a"
    wish(stepped, pod, "9Gi")
    direct_client(stepped)
    client.BatchV1Api(direct_client(stepped)).delete_namespaced_job("filler", "default")
    stepped.pass_time(2)
    status = stepped.kubelet.pod(pod["metadata"]["uid"])["status"]["containerStatuses"][0]
    assert status["resources"]["limits"]["memory"] == "9Gi"


def test_a_wish_takes_effect_when_its_node_gets_to_it_and_an_infeasible_one_never(stepped):
    stepped.kubelet.resizes.latency = lambda node: 20.0
    pod = wish(stepped, sleeping(stepped, "one", "64Mi"), "100Mi")
    given = lambda: stepped.kubelet.pod(pod["metadata"]["uid"])["status"]["containerStatuses"][0]  # noqa: E731
    stepped.pass_time(19)
    assert given()["resources"]["limits"]["memory"] == "64Mi"
    assert given()["allocatedResources"]["memory"] == "100Mi"
    stepped.pass_time(2)
    assert given()["resources"]["limits"]["memory"] == "100Mi"
    stepped.kubelet.resizes.infeasible.add("node-a")
    wish(stepped, pod, "200Mi")
    stepped.pass_time(60)
    assert given()["allocatedResources"]["memory"] == "100Mi"


NODES = {
    "small": "4Gi",
    "gpu": {
        "memory": "64Gi",
        "taints": ({"key": "dedicated", "value": "gpu", "effect": "NoSchedule"},),
    },
    "big": "16Gi",
}
PREEMPTION = (
    "no new claims to deallocate, preemption: 0/3 nodes are available: 3 Preemption is not helpful"
    " for scheduling."
)


def test_of_several_nodes_the_fitting_one_with_the_most_room_is_taken_and_reasons_are_counted():
    with Cluster(NODES, real=False, tls=False, stepped=True) as stepped:
        assert sleeping(stepped, "one", "1Gi")["spec"]["nodeName"] == "big"
        stepped.taint("big", CORDON)
        assert sleeping(stepped, "two", "1Gi")["spec"]["nodeName"] == "small"
        waits = sleeping(stepped, "three", "8Gi")
        (condition,) = waits["status"]["conditions"]
        assert condition["message"] == (
            "0/3 nodes are available: 1 Insufficient memory, 1 node(s) had untolerated taint(s),"
            f" 1 node(s) were unschedulable. {PREEMPTION}"
        )
        (event,) = [e for e in stepped.list("events") if e["reason"] == "FailedScheduling"]
        assert event["message"] == condition["message"]
        stepped.taint("big", CORDON, on=False)
        stepped.settle()
        assert stepped.list("pods", "job-name=three")[0]["spec"]["nodeName"] == "big"


@pytest.mark.parametrize("kind", ["cluster-autoscaler", "karpenter"])
def test_an_autoscaler_says_what_it_does_about_a_pod_that_waits(kind):
    with Cluster({"small": "4Gi"}, real=False, tls=False, stepped=True) as stepped:
        stepped.beside.append(Autoscaler(stepped, memory="32Gi", kind=kind).tick)
        for name, memory in (("fits", "20Gi"), ("never", "200Gi")):
            sleeping(stepped, name, memory)
        stepped.pass_time(30)
        said = {
            e["involvedObject"]["name"][:5]: e["reason"]
            for e in stepped.list("events")
            if e["involvedObject"]["kind"] == "Pod" and e["reason"] != "FailedScheduling"
        }
        assert said.get("fits-") == {"cluster-autoscaler": "TriggeredScaleUp"}.get(
            kind, "Nominated"
        )
        stepped.pass_time(90)
        assert stepped.list("pods", "job-name=fits")[0]["spec"]["nodeName"] == "pool-1"
        stepped.pass_time(800, step=10)
        assert [node["metadata"]["name"] for node in stepped.list("nodes")] == ["small"]
