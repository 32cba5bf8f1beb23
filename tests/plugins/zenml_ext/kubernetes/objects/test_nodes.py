"""What a pod asks for and where it may run, as Kubernetes computes both; quotas it shares."""

import pytest

pytest.importorskip("zenml")

from mlops_ext.memory import Quantity
from zenml_ext.kubernetes.objects.capacity import CapsReader, read_refusal
from zenml_ext.kubernetes.objects.diagnosis import lacks_memory
from zenml_ext.kubernetes.objects.nodes import may_run_on, pod_memory

GI = 1 << 30


def container(memory, **more):
    return {"name": "c", "resources": {"requests": {"memory": memory}}, **more}


def sidecar(memory):
    return container(memory, restartPolicy="Always")


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"containers": [container("1Gi"), container("2Gi")]}, 3),
        ({"containers": [container("1Gi")], "initContainers": [container("4Gi")]}, 4),
        ({"containers": [container("2Gi")], "initContainers": [sidecar("1Gi")]}, 3),
        (
            {
                "containers": [container("2Gi")],
                "initContainers": [sidecar("1Gi"), container("4Gi"), sidecar("1Gi")],
            },
            5,
        ),
        ({"containers": [container("2Gi")], "overhead": {"memory": "1Gi"}}, 3),
        ({"containers": [container("2Gi")], "resources": {"requests": {"memory": "6Gi"}}}, 6),
        ({"containers": [{"name": "c", "resources": {"limits": {"memory": "2Gi"}}}]}, 2),
        ({"containers": [{"name": "c"}]}, 0),
    ],
)
def test_a_pod_asks_for_what_kubernetes_says_it_does(spec, expected):
    assert pod_memory(spec) == expected * GI


def test_a_pod_that_waits_asks_for_all_its_containers():
    message = "0/1 nodes are available: 1 Insufficient memory."
    waits = {"type": "PodScheduled", "status": "False", "message": message}
    spec = {"containers": [container("128Mi"), container("9Gi")]}
    pod = {"metadata": {"name": "p"}, "spec": spec, "status": {"conditions": [waits]}}
    assert lacks_memory(pod) == message
    assert pod_memory(spec) == Quantity.parse("9344Mi")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"key": "pool", "operator": "In", "values": ["small"]}, True),
        ({"key": "pool", "operator": "NotIn", "values": ["small"]}, False),
        ({"key": "pool", "operator": "Exists"}, True),
        ({"key": "gpu", "operator": "DoesNotExist"}, True),
        ({"key": "cores", "operator": "Gt", "values": ["4"]}, True),
        ({"key": "cores", "operator": "Lt", "values": ["4"]}, False),
    ],
)
def test_a_required_affinity_decides_which_nodes_count(rule, expected):
    node = {"metadata": {"name": "n", "labels": {"pool": "small", "cores": "8"}}, "spec": {}}
    key = "requiredDuringSchedulingIgnoredDuringExecution"
    terms = {key: {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}}
    assert may_run_on(node, {"affinity": {"nodeAffinity": terms}}) is expected


QUOTA = (
    'Error creating: pods "x" is forbidden: exceeded quota: team, requested: limits.memory=2Gi,'
    " used: limits.memory=600Mi, limited: limits.memory=2Gi"
)


def orchestrator(run_id):
    resources = {section: {"memory": "600Mi"} for section in ("limits", "requests")}
    return {
        "metadata": {"name": "o", "labels": {"run_id": run_id}},
        "spec": {"nodeName": "n", "containers": [{"name": "main", "resources": resources}]},
        "status": {"phase": "Running"},
    }


def test_a_step_never_waits_for_the_quota_that_its_own_orchestrator_holds():
    assert not read_refusal(QUOTA).for_good  # another run may end
    refused = read_refusal(QUOTA, [orchestrator("r")])
    assert refused.for_good
    assert "beside 600Mi of this run's own orchestrator" in refused.message


def test_a_retry_asks_for_no_more_than_quota_and_node_leave_to_its_container():
    kinds = {
        "nodes": [{"metadata": {"name": "n"}, "status": {"allocatable": {"memory": "8Gi"}}}],
        "pods": [orchestrator("r"), orchestrator("another")],
        "resourcequotas": [{"spec": {"hard": {"limits.memory": "4Gi"}}}],
    }
    reader = CapsReader(lambda kind: kinds.get(kind, []))
    template = {"containers": [container("1Gi"), container("128Mi")]}
    caps = reader.caps(template, None, "r", Quantity.parse("1Gi"))
    assert caps.quota == Quantity.parse("3368Mi")  # 4Gi less 600Mi less 128Mi
    assert caps.node == Quantity.parse("7464Mi")
