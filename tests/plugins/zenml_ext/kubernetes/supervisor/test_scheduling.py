"""Steps that wait on the double's API: for nodes, quotas and each other; and what can never run."""

import pytest

pytest.importorskip("kubernetes")

from tests.doubles.kubernetes import Cluster, clock
from tests.doubles.kubernetes.autoscaler import Autoscaler
from tests.doubles.kubernetes.direct import direct_client
from tests.doubles.kubernetes.orchestrator import (
    FakeStepRuns,
    JobStatus,
    Orchestrator,
    failed_job,
    limits,
)

from mlops_ext.memory import Quantity
from zenml_ext.kubernetes.objects.job import latest_jobs


def test_what_no_node_can_ever_run_fails_after_an_autoscalers_look_and_names_the_node(cluster):
    now = [1000.0]
    ours = Orchestrator(cluster, FakeStepRuns(), lambda: now[0])
    ours.step_runs.limit = Quantity.parse("64Gi")
    name = ours.start("0 Completed 0", limit="64Gi")
    unschedulable(cluster)
    for _ in range(3):
        status, message = ours.check(name)
        assert (status, "which no node has free now" in message) == (JobStatus.RUNNING, True)
        now[0] += 20
    status, message = ours.until_over(name)
    assert status is JobStatus.FAILED
    assert "asks for 64Gi" in message
    assert "node-a has 4Gi" in message
    assert cluster.wait_for(lambda: not cluster.list("pods", "step_name=step"))


def unschedulable(cluster):
    return cluster.wait_for(
        lambda: [
            condition
            for pod in cluster.list("pods", "step_name=step")
            for condition in pod["status"].get("conditions") or ()
            if condition.get("reason") == "Unschedulable"
        ]
    )


def test_an_autoscaler_that_would_add_no_node_is_believed_at_once(cluster):
    ours = Orchestrator(cluster, FakeStepRuns())
    ours.step_runs.limit = Quantity.parse("64Gi")
    name = ours.start("0 Completed 0", limit="64Gi")
    unschedulable(cluster)
    (pod,) = cluster.list("pods", "step_name=step")
    involved = {"kind": "Pod", "name": pod["metadata"]["name"]}
    event = {"kind": "Event", "metadata": {"name": "e1"}, "involvedObject": involved}
    cluster.store.create("events", "zenml", {**event, "reason": "NotTriggerScaleUp"})
    status, message = ours.check(name)
    assert status is JobStatus.FAILED
    assert "no node can ever run it" in message


@pytest.mark.parametrize("reason", ["TriggeredScaleUp", "Nominated", "WordsOfTomorrow"])
def test_a_node_that_somebody_is_about_to_add_is_waited_for(cluster, reason):
    now = [1000.0]
    ours = Orchestrator(cluster, FakeStepRuns(), lambda: now[0])
    ours.step_runs.limit = Quantity.parse("64Gi")
    name = ours.start("0 Completed 0", limit="64Gi")
    pod = cluster.wait_for(lambda: cluster.list("pods", "step_name=step"))[0]
    meta = {"name": "e1"}
    involved = {"kind": "Pod", "name": pod["metadata"]["name"]}
    event = {"kind": "Event", "metadata": meta, "involvedObject": involved}
    cluster.store.create("events", "zenml", {**event, "reason": reason})
    unschedulable(cluster)
    for _ in range(3):
        assert ours.check(name)[0] is JobStatus.RUNNING
        now[0] += 1000


def without_nodes(cluster):
    """An orchestrator that may not list nodes, with a clock of its own; its step fits no node."""
    cluster.denied = lambda user, verb, resource: resource == "nodes"
    now = [1000.0]
    ours = Orchestrator(cluster, FakeStepRuns(), lambda: now[0])
    ours.step_runs.limit = Quantity.parse("64Gi")
    name = ours.start("0 Completed 0", limit="64Gi")
    cluster.wait_for(
        lambda: [
            condition
            for pod in cluster.list("pods", "step_name=step")
            for condition in pod["status"].get("conditions") or ()
            if condition.get("reason") == "Unschedulable"
        ]
    )
    return ours, name, now


def test_without_the_right_to_list_nodes_a_wait_for_memory_is_told_and_not_given_up(
    cluster, caplog
):
    ours, name, now = without_nodes(cluster)
    for _ in range(3):
        status, message = ours.check(name)
        assert status is JobStatus.RUNNING
        assert "asks for 64Gi of memory, which no node has free now" in message
        assert "none may be listed" in message
        now[0] += 3600
    assert caplog.text.count("Step step waits") == 1


def test_a_limit_range_that_refuses_for_good_is_told_and_not_waited_for(cluster):
    limit = {"type": "Container", "max": {"memory": "100Mi"}}
    cluster.store.create(
        "limitranges",
        "zenml",
        {"kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [limit]}},
    )
    ours = Orchestrator(cluster, FakeStepRuns())
    status, message = ours.until_over(ours.start("0 Completed 0"))
    assert status is JobStatus.FAILED
    assert "LimitRange allows 100Mi per container, and 200Mi was asked for" in message


def quota(cluster, hard):
    cluster.store.create(
        "resourcequotas",
        "zenml",
        {
            "kind": "ResourceQuota",
            "metadata": {"name": "team"},
            "spec": {"hard": {"limits.memory": hard}},
        },
    )


def test_a_quota_that_can_never_grant_it_is_told_and_not_waited_for(cluster):
    quota(cluster, "100Mi")
    ours = Orchestrator(cluster, FakeStepRuns())
    status, message = ours.until_over(ours.start("0 Completed 0"))
    assert status is JobStatus.FAILED
    assert "quota team" in message
    assert "can never run" in message


def test_a_quota_in_use_is_told_and_waited_for(cluster):
    quota(cluster, "300Mi")
    ours = Orchestrator(cluster, FakeStepRuns())
    first = ours.start("0 Completed 8", name="one", step="one")
    cluster.wait_for(lambda: cluster.list("pods", "step_name=one"))
    second = ours.start("0 Completed 0", name="two", step="two")
    cluster.wait_for(lambda: [e for e in cluster.list("events") if e["reason"] == "FailedCreate"])
    status, message = ours.check(second)
    assert status is JobStatus.RUNNING
    while message is None and status is JobStatus.RUNNING:
        status, message = ours.check(second)
    assert "starts when others have finished" in message
    assert ours.until_over(first)[0] is JobStatus.SUCCEEDED
    assert ours.until_over(second)[0] is JobStatus.SUCCEEDED


def test_escalation_stops_at_the_quota(cluster):
    quota(cluster, "300Mi")
    ours = Orchestrator(cluster, FakeStepRuns())
    status, message = ours.until_over(ours.start("137 OOMKilled 0"))
    assert status is JobStatus.FAILED
    assert limits(cluster) == ["200Mi", "300Mi"]
    assert "ResourceQuota" in message


def test_a_successor_that_waits_for_a_node_keeps_the_step_run_alive(cluster):
    step_runs = FakeStepRuns()
    now = [1000.0]
    ours = Orchestrator(cluster, step_runs, lambda: now[0])
    name = ours.start("137 OOMKilled 0;0 Completed 0")
    failed_job(cluster, name)
    cluster.pause_jobs.set()
    ours.check(name)
    before = step_runs.heartbeats
    for _ in range(4):
        now[0] += 10
        ours.check(name)
    assert step_runs.heartbeats - before == 2


def test_after_a_node_ran_out_the_killed_steps_run_apart_from_each_other(cluster):
    step_runs = FakeStepRuns()
    step_runs.limit = None
    ours = Orchestrator(cluster, step_runs)
    jobs = [
        ours.start("137 OOMKilled 0;0 Completed 0.2", name=f"j{i}", step=f"s{i}", limit=None)
        for i in range(3)
    ]
    for job in jobs:
        failed_job(cluster, job)
    for job in jobs:
        assert ours.until_over(job)[0] is JobStatus.SUCCEEDED
    current, _ = latest_jobs(cluster.list("jobs"))
    assert sorted(job["metadata"]["name"] for job in current) == ["j0-m2", "j1-m2", "j2-m2"]
    for job in current:
        (term,) = job["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        assert term["labelSelector"]["matchExpressions"] == [
            {"key": "step_name", "operator": "Exists"}
        ]


@pytest.mark.parametrize("refuser", ["limit range", "quota", "node"])
def test_a_plan_that_can_never_be_had_gives_way_to_what_can_if_the_user_asked_for_less(
    cluster, refuser
):
    if refuser == "quota":
        quota(cluster, "300Mi")
    elif refuser == "limit range":
        item = {"type": "Container", "max": {"memory": "300Mi"}}
        body = {"kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [item]}}
        cluster.store.create("limitranges", "zenml", body)
    now = [1000.0]
    ours = Orchestrator(cluster, FakeStepRuns(), lambda: now[0])
    ours.step_runs.limit = Quantity.parse("5Gi")  # what the history says
    ours.step_runs.asked = Quantity.parse("200Mi")
    name = ours.start("0 Completed 0")
    while (found := ours.check(name))[0] is JobStatus.RUNNING:
        now[0] += 5
    assert found[0] is JobStatus.SUCCEEDED
    given = "4Gi" if refuser == "node" else "300Mi"
    assert limits(cluster) == [given]  # the first Job is gone, and its pod with it
    ((_, (attempt,)),) = ours.step_runs.records
    assert attempt["outcome"] == "refused"
    assert "nobody asked for more" in attempt["reason"]


@pytest.mark.parametrize("kind", ["cluster-autoscaler", "karpenter"])
def test_the_size_of_a_node_that_an_autoscaler_may_add_is_found_by_halving(kind):
    """Killed at 16Gi, and 32Gi is more than any node that may come: what is between is tried."""
    with Cluster({"small": "4Gi"}, real=False, tls=False, stepped=True) as stepped:
        stepped.beside.append(Autoscaler(stepped, memory="26Gi", kind=kind).tick)
        ours = Orchestrator(stepped, FakeStepRuns(), clock.monotonic, direct_client(stepped))
        ours.step_runs.limit = Quantity.parse("16Gi")
        name = ours.start("137 OOMKilled 5;0 Completed 5", limit="16Gi")
        tried = []
        for _ in range(200):
            stepped.pass_time(5)
            status, _ = ours.check(name)
            tried += [size for size in limits(stepped) if size not in tried]
            if status is not JobStatus.RUNNING:
                break
        assert status is JobStatus.SUCCEEDED
        assert tried == ["16Gi", "32Gi", "24Gi"]


def test_a_kubelet_that_refuses_for_minutes_is_asked_more_and_more_seldom():
    """Pods that take minutes to end hold memory of which the scheduler knows nothing any more."""
    with Cluster({"only": "4Gi"}, real=False, tls=False, stepped=True) as stepped:
        ours = Orchestrator(stepped, FakeStepRuns(), clock.monotonic, direct_client(stepped))
        stepped.kubelet.ghosts["only"] = "4Gi"
        name = ours.start("0 Completed 5")
        for number in range(400):
            if number == 200:
                stepped.kubelet.ghosts.clear()
            stepped.pass_time(5)
            status, message = ours.check(name)
            if status is not JobStatus.RUNNING:
                break
        assert (status, message) == (JobStatus.SUCCEEDED, None)
        jobs = stepped.list("jobs")
        assert 8 <= len(jobs) <= 15
        assert limits(stepped) == ["200Mi"] * len(jobs)
        assert ours.step_runs.heartbeats > 20
