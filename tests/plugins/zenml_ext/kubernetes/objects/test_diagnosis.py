"""Whose kill it was, and what it had: pods with several containers, resizes, refusals, full disks."""

import pytest

pytest.importorskip("zenml")

from mlops_ext.memory import Cause, MemoryPlan, MemorySettings, Quantity, RequestPolicy
from zenml_ext.kubernetes.objects.diagnosis import diagnose, may_be_the_nodes, with_node_events
from zenml_ext.kubernetes.objects.job import next_job_name
from zenml_ext.kubernetes.objects.state import AttemptState
from zenml_ext.kubernetes.supervisor.decisions import FailedJob, GiveUp, Relaunch, after_failure

POLICY = RequestPolicy(settings=MemorySettings())
REPORT = '{"mlops-ext":1,"peak":%d,"limit":%d}'
BEGIN, END = "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"


def memory(size):
    return {"resources": {"limits": {"memory": size}, "requests": {"memory": size}}}


def ended(name, code, reason, message="", **more):
    end = {"exitCode": code, "reason": reason, "message": message}
    end |= {"startedAt": BEGIN, "finishedAt": END}
    return {"name": name, "state": {"terminated": end}, **more}


def pod(*statuses, init=(), **more):
    containers = [{"name": "proxy", **memory("128Mi")}, {"name": "main", **memory("4Gi")}]
    return {
        "metadata": {"name": "p", "creationTimestamp": more.pop("created", BEGIN)},
        "spec": {
            "nodeName": "n",
            "initContainers": [{"name": "fetch", **memory("64Mi")}],
            "containers": containers,
        },
        "status": {
            "phase": "Failed",
            "containerStatuses": list(statuses),
            "initContainerStatuses": list(init),
            **more,
        },
    }


def job():
    failed = {"type": "Failed", "status": "True", "reason": "BackoffLimitExceeded", "message": ""}
    return {
        "metadata": {
            "name": "j",
            "labels": {"run_id": "r"},
            "annotations": {"zenml.io/step-name": "s"},
        },
        "spec": {
            "backoffLimit": 0,
            "template": {"spec": {"containers": [{"name": "main", **memory("4Gi")}]}},
        },
        "status": {"failed": 1, "conditions": [failed]},
    }


def after(termination, **more):
    plan = MemoryPlan(ladder=(Quantity.parse("4Gi"),), reason="asked for")
    state = AttemptState(base="j", plan=plan, **more.pop("state", {}))
    failed = FailedJob(job=job(), state=state, termination=termination, **more)
    return after_failure(failed, POLICY, in_place=True)


def test_a_second_container_that_is_killed_leaves_the_steps_memory_alone():
    killed = ended("proxy", 137, "OOMKilled")
    brought_down = diagnose(job(), [pod(killed, ended("main", 137, "Error"))])
    assert brought_down.memory == Quantity.parse("4Gi")
    assert "container proxy was killed for memory at its own limit of 128Mi" in brought_down.message
    next_ = after(brought_down)
    assert isinstance(next_, Relaunch)
    assert next_.change.limit == Quantity.parse("4Gi")


def test_a_step_that_ended_well_stays_so_whatever_became_of_the_container_beside_it():
    found = diagnose(job(), [pod(ended("proxy", 137, "OOMKilled"), ended("main", 0, "Completed"))])
    assert after(found).cause is Cause.NONE


def test_a_steps_own_error_is_its_own_beside_a_killed_container():
    found = diagnose(job(), [pod(ended("proxy", 137, "OOMKilled"), ended("main", 1, "Error"))])
    next_ = after(found)
    assert isinstance(next_, GiveUp)
    assert next_.attempt.outcome == "failed"
    assert "container main ended with exit code 1" in next_.reason
    assert "proxy" in next_.reason


def test_a_killed_init_container_is_named_and_never_tried_again():
    waiting = {"name": "main", "state": {"waiting": {"reason": "PodInitializing"}}}
    found = diagnose(job(), [pod(waiting, init=[ended("fetch", 137, "OOMKilled")])])
    next_ = after(found)
    assert isinstance(next_, GiveUp)
    words = "init container fetch was killed for memory at its own limit of 64Mi"
    for told in (next_.reason, next_.attempt.reason):
        assert told.count(words) == 1


def test_the_limit_of_a_kill_is_what_was_given_and_not_what_was_asked_for():
    """A resize to 4Gi was deferred: the kubelet's status has what the container had."""
    main = ended("main", 137, "OOMKilled", **memory("1125Mi"))
    assert diagnose(job(), [pod(main)]).memory == Quantity.parse("1125Mi")
    reported = ended("main", 137, "OOMKilled", REPORT % (1, 1125 << 20))  # an older kubelet
    assert diagnose(job(), [pod(reported)]).memory == Quantity.parse("1125Mi")


@pytest.mark.parametrize(
    "reason", ["OutOfmemory", "OutOfcpu", "OutOfpods", "NodeAffinity", "UnexpectedAdmissionError"]
)
def test_what_the_kubelet_refuses_is_tried_elsewhere_with_the_same_memory(reason):
    found = diagnose(job(), [pod(reason=reason, message="Pod was rejected: too little memory")])
    next_ = after(found)
    assert isinstance(next_, Relaunch)
    assert (next_.change.limit, next_.change.avoid_node) == (Quantity.parse("4Gi"), "n")
    assert next_.change.state.oom_retries == 0
    assert "the kubelet refused the pod" in next_.attempt.reason
    last = after(found, state={"disruptions": 20})
    assert isinstance(last, GiveUp)


@pytest.mark.parametrize(
    "words",
    [
        "Pod ephemeral local storage usage exceeds the total limit of containers 200Mi. ",
        'Container main exceeded its local ephemeral storage limit "200Mi". ',
        'Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". ',
        "The node was low on resource: ephemeral-storage. ",
        "The node had condition: [DiskPressure]. ",
    ],
)
@pytest.mark.parametrize("message", ["", '{"mlops-ext":1,"peak":4294967296,"oom_kills":2}'])
def test_an_eviction_for_disk_is_the_steps_own_and_never_memorys(words, message):
    main = ended("main", 137, "OOMKilled", message)
    next_ = after(diagnose(job(), [pod(main, reason="Evicted", message=words)]))
    assert isinstance(next_, GiveUp)
    assert next_.cause is Cause.STORAGE
    assert f"{words.rstrip('. ')}. It was evicted" in next_.reason


def test_the_newest_pod_tells_what_ended_a_job():
    old = pod(ended("main", 137, "OOMKilled"), created="2026-01-01T00:00:00Z")
    new = pod(ended("main", 3, "Error"), created="2026-01-02T00:00:00Z")
    for order in ([old, new], [new, old]):
        assert diagnose(job(), order).evidence.exit_code == 3


@pytest.mark.parametrize(
    ("words", "next_"),
    [
        ("Pod zenml/p2 has condition DisruptionTarget matching FailJob rule at index 0", Relaunch),
        ("Pod zenml/p has condition DisruptionTarget matching FailJob rule at index 0", GiveUp),
    ],
    ids=["the drained one is gone", "it is there"],
)
def test_a_failure_before_is_not_taken_for_the_end_of_a_pod_that_was_drained(words, next_):
    """Of the user's own retries the first has failed; the pod of the second left nothing."""
    old = pod(ended("main", 1, "Error"))
    drained = job()
    drained["status"]["conditions"][0] |= {"reason": "PodFailurePolicy", "message": words}
    assert isinstance(after(diagnose(drained, [old])), next_)


def test_pods_that_a_kubelet_refused_use_none_of_the_users_own_retries():
    """Kubernetes counts them: three refusals and one failure end a Job with three retries."""
    refused = [
        pod(created=f"2026-01-0{n}T00:00:00Z", reason="OutOfmemory", message="rejected")
        for n in (1, 2, 3)
    ]
    counted = job()
    counted["spec"]["backoffLimit"], counted["status"]["failed"] = 3, 4
    own = pod(ended("main", 1, "Error"), created="2026-01-04T00:00:00Z")
    next_ = decided(counted, [*refused, own])
    assert (next_.change.backoff_limit, next_.resume) == (2, False)
    elsewhere = decided(counted, [*refused, pod(created="2026-01-05", reason="OutOfmemory")])
    assert (elsewhere.change.backoff_limit, elsewhere.resume) == (3, True)
    counted["status"]["failed"] = 7  # and four of its own
    assert isinstance(decided(counted, [*refused, own]), GiveUp)


def decided(job, pods):
    """What follows the end of *job*."""
    state = AttemptState(base="j", plan=MemoryPlan(ladder=(Quantity.parse("4Gi"),), reason=""))
    failed = FailedJob(job=job, state=state, termination=diagnose(job, pods))
    return after_failure(failed, POLICY, in_place=True)


def spike():
    """Killed at its own 4Gi while the last reading was 221Mi."""
    return diagnose(job(), [pod(ended("main", 137, "OOMKilled", REPORT % (221 << 20, 4 << 30)))])


def test_a_step_killed_at_its_own_limit_gets_more_whoever_else_is_in_the_run():
    next_ = after(spike())
    assert next_.change.limit == Quantity.parse("8Gi")
    assert next_.attempt.peak == Quantity.parse("4Gi")  # at least, whatever was sampled


def test_only_the_nodes_own_event_makes_a_kill_the_nodes_and_only_once():
    found = spike()
    assert may_be_the_nodes(found)
    events = [{"lastTimestamp": END, "message": "System OOM encountered"}]
    nodes = with_node_events(found, events, now=1767225660.0)
    first = after(nodes)
    assert first.change.limit == Quantity.parse("4Gi")
    second = after(nodes, state={"attempts": first.change.state.attempts})
    assert second.change.limit == Quantity.parse("8Gi")


def test_long_names_that_differ_at_their_end_stay_different():
    bases = [("a" * 57 + f"-{end}")[:63] for end in ("12345678", "12340000")]
    found = {next_job_name(AttemptState(base=base, number=2)) for base in bases}
    assert len(found) == 2
    assert all(len(name) <= 63 for name in found)


def test_a_setting_is_named_as_the_user_knows_it():
    next_ = after(spike(), state={"oom_retries": 4})
    assert isinstance(next_, GiveUp)
    assert "raise oom_retries" in next_.reason
    assert "memory.max" not in next_.reason


def test_a_full_dev_shm_and_a_memory_error_are_named():
    job = {"spec": {"template": {"spec": {"containers": [{"name": "main"}]}}}}

    def ended(code, message=""):
        end = {"exitCode": code, "reason": "Error", "message": message}
        return {
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "main"}]},
            "status": {
                "phase": "Failed",
                "containerStatuses": [{"name": "main", "state": {"terminated": end}}],
            },
        }

    assert "/dev/shm" in diagnose(job, [ended(135)]).message
    found = diagnose(job, [ended(137, '{"mlops-ext":1,"peak":5,"memory_error":true}')])
    assert found.message == "the step raised a MemoryError"
    assert not found.evidence.oom_killed
