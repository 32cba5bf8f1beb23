"""What a cluster can give a pod, and refusals of admission in the user's words."""

import pytest

from mlops_ext.memory import Quantity
from zenml_ext.kubernetes.objects.capacity import read_refusal, rooms_of


@pytest.mark.parametrize(
    ("text", "for_good", "words"),
    [
        (
            (
                'Error creating: pods "x" is forbidden: exceeded quota: team, requested:'
                " limits.memory=2Gi, used: limits.memory=1Gi, limited: limits.memory=1536Mi"
            ),
            True,
            "can never run",
        ),
        (
            (
                'Error creating: pods "x" is forbidden: exceeded quota: team, requested:'
                " limits.memory=1Gi, used: limits.memory=1Gi, limited: limits.memory=1536Mi"
            ),
            False,
            "starts when others have finished",
        ),
        (
            (
                'Error creating: pods "x" is forbidden: maximum memory usage per Container is 1Gi,'
                " but limit is 2Gi"
            ),
            True,
            "LimitRange allows 1Gi per container",
        ),
        (
            (
                'Error creating: Pod "x" is invalid: spec.containers[0].resources.requests: Invalid'
                ' value: "400Mi": must be less than or equal to memory limit of 300Mi'
            ),
            True,
            "set the step's memory",
        ),
        (
            'pods "x" is forbidden: failed quota: team: must specify limits.memory for: fetch',
            True,
            "must specify limits.memory",
        ),
        (
            'pods "x" is forbidden: violates PodSecurity "restricted:latest"',
            False,  # a namespace's labels may change
            "PodSecurity",
        ),
    ],
)
def test_refusals_of_admission_are_told_in_the_users_words(text, for_good, words):
    found = read_refusal(text)
    assert found.for_good is for_good
    assert words in found.message


def node(name, memory, **spec):
    meta = {"name": name, "labels": {"pool": name}}
    return {"metadata": meta, "spec": spec, "status": {"allocatable": {"memory": memory}}}


def test_the_room_on_a_node_is_what_daemons_and_the_orchestrator_leave():
    resources = {"requests": {"memory": "1Gi"}}

    def pod(kind, **labels):
        return {
            "metadata": {"ownerReferences": [{"kind": kind}], "labels": labels},
            "spec": {"nodeName": "a", "containers": [{"resources": resources}]},
            "status": {"phase": "Running"},
        }

    pods = [pod("DaemonSet"), pod("Job", run_id="r"), pod("Job", run_id="r", step_name="s")]
    tainted = node("b", "64Gi", taints=[{"key": "gpu", "effect": "NoSchedule"}])
    (room,) = rooms_of([node("a", "8Gi"), tainted], pods, {}, run_id="r")
    assert (room.name, room.room) == ("a", Quantity.parse("6Gi"))
    (others,) = rooms_of([node("a", "8Gi")], pods, {}, run_id="another run")
    assert others.room == Quantity.parse("7Gi")  # a run of somebody else ends some day
    for momentary in (
        node("c", "64Gi", unschedulable=True),
        node("c", "64Gi", taints=[{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]),
        node(
            "c",
            "64Gi",
            taints=[{"key": "node.kubernetes.io/memory-pressure", "effect": "NoSchedule"}],
        ),
    ):
        assert rooms_of([node("a", "8Gi"), momentary], pods, {})[0].name == "c"
    tolerant = {"tolerations": [{"key": "gpu", "operator": "Exists"}]}
    assert [room.name for room in rooms_of([tainted], (), tolerant)] == ["b"]
    assert rooms_of([node("a", "8Gi")], (), {"nodeSelector": {"pool": "z"}}) == []
