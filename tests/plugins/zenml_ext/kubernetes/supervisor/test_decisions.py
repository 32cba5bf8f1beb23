"""What ended a Job and what follows, on recordings of a real Kubernetes."""

import copy
import dataclasses
import json
from pathlib import Path

import pytest

pytest.importorskip("zenml")

from mlops_ext.memory import Caps, Cause, MemoryPlan, MemorySettings, Quantity, RequestPolicy
from zenml_ext.kubernetes.objects.diagnosis import diagnose, lacks_memory
from zenml_ext.kubernetes.objects.job import (
    JobChange,
    latest_jobs,
    main_container,
    memory_of,
    next_job,
    next_job_name,
    prepare_step_job,
    superseding_patch,
)
from zenml_ext.kubernetes.objects.nodes import pod_memory
from zenml_ext.kubernetes.objects.state import AttemptState, state_of
from zenml_ext.kubernetes.supervisor.decisions import FailedJob, GiveUp, Relaunch, after_failure

RECORDINGS = Path(__file__).parents[4] / "data" / "kubernetes"
POLICY = RequestPolicy(settings=MemorySettings())
MIB = 1 << 20
STEP_ENTRYPOINT = "zenml.entrypoints.step_entrypoint_configuration.StepEntrypointConfiguration"


def recording(name):
    items = json.loads((RECORDINGS / f"{name}.json").read_text())["items"]
    jobs = [item for item in items if item["kind"] == "Job"]
    return jobs[0], [item for item in items if item["kind"] == "Pod"]


def step_job(limit="200Mi", *, name="abc-step-pipe", backoff_limit=0):
    resources = {"limits": {"memory": limit}, "requests": {"memory": limit}} if limit else {}
    job = {
        "metadata": {
            "name": name,
            "labels": {"run_id": "r1", "step_name": "step"},
            "annotations": {"zenml.io/step-name": "step"},
        },
        "spec": {
            "backoffLimit": backoff_limit,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "Count",
                        "onExitCodes": {
                            "containerName": "main",
                            "operator": "NotIn",
                            "values": [0],
                        },
                    }
                ]
            },
            "template": {
                "metadata": {"labels": {"run_id": "r1", "step_name": "step"}},
                "spec": {
                    "containers": [
                        {
                            "name": "main",
                            "image": "i",
                            "resources": resources,
                            "args": [
                                "-m",
                                "zenml.entrypoints.entrypoint",
                                "--entrypoint_config_source",
                                STEP_ENTRYPOINT,
                                "--step_name",
                                "step",
                            ],
                        }
                    ]
                },
            },
        },
    }
    plan = MemoryPlan(ladder=(Quantity.parse(limit),), reason="test") if limit else None
    return prepare_step_job(job, plan=plan, in_place=True)


def failed(name, **changes):
    """A step's Job that ended as the recording did."""
    job, pods = recording(name)
    ours = step_job(backoff_limit=changes.pop("backoff_limit", 0))
    ours["status"] = job["status"]
    termination = diagnose({**job, "spec": {**job["spec"]}}, pods)
    given = {"state": state_of(ours), "caps": Caps()} | changes
    return FailedJob(job=ours, termination=termination, **given)


@pytest.mark.parametrize(
    ("name", "oom", "exit_code", "succeeded", "storage"),
    [
        ("oom-main", True, 137, False, False),
        ("oom-child-exit3", True, 3, False, False),
        ("oom-tmpfs", True, 137, False, False),
        ("oom-failjob", True, 137, False, False),
        ("oom-backoff-limit-1", True, 137, False, False),
        ("oom-child-exit0", False, 0, True, False),
        ("sigkill-not-oom", False, 137, False, False),
        ("child-signal-ignored-by-pid1", False, 0, True, False),
        ("evicted-ephemeral", False, 137, False, True),
        ("drained", False, None, False, False),
        ("deleted", False, 137, False, False),
        ("exit-1", False, 1, False, False),
        ("memoryerror", False, 1, False, False),
        ("success", False, 0, True, False),
        ("deadline", False, None, False, False),
        ("badimage", False, None, False, False),
        ("unschedulable", False, None, False, False),
        ("init-oom", True, None, False, False),
        ("second-oom", False, 0, True, False),
        ("sidecar-oom", False, 0, True, False),
        ("node-affinity", False, None, False, False),
        ("out-of-cpu", False, None, False, False),
        ("out-of-memory", False, None, False, False),
    ],
)
def test_every_recorded_ending_is_told_apart(name, oom, exit_code, succeeded, storage):
    job, pods = recording(name)
    found = diagnose(job, pods).evidence
    assert (found.oom_killed, found.exit_code) == (oom, exit_code)
    assert (found.succeeded, found.storage_evicted) == (succeeded, storage)


def test_all_recordings_are_covered():
    marks = test_every_recorded_ending_is_told_apart.pytestmark
    endings = {
        path.stem
        for path in RECORDINGS.glob("*.json")
        if any(one["kind"] == "Job" for one in json.loads(path.read_text())["items"])
    }
    assert {case[0] for case in marks[0].args[1]} == endings


@pytest.mark.parametrize("name", ["oom-main", "oom-child-exit3", "oom-tmpfs", "oom-failjob"])
def test_a_kill_for_memory_is_followed_by_twice_the_memory(name):
    next_ = after_failure(failed(name), POLICY, in_place=True)
    assert isinstance(next_, Relaunch)
    assert next_.resume
    assert next_.change.limit == 400 * MIB
    assert next_.change.state.oom_retries == 1


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("exit-1", Cause.OTHER),
        ("memoryerror", Cause.OTHER),
        ("evicted-ephemeral", Cause.STORAGE),
        ("sigkill-not-oom", Cause.AMBIGUOUS),
        ("deadline", Cause.OTHER),
    ],
)
def test_what_is_not_about_memory_is_left_to_fail(name, cause):
    next_ = after_failure(failed(name), POLICY, in_place=True)
    assert isinstance(next_, GiveUp)
    assert next_.cause is cause
    if name == "evicted-ephemeral":
        assert "disk, not of memory" in next_.reason


def test_a_signal_9_uses_one_of_the_users_own_retries():
    job, pods = recording("oom-failjob")
    for pod in pods:
        pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] = "Error"
    ours = step_job(backoff_limit=2)
    termination = diagnose(job, pods)
    next_ = after_failure(
        FailedJob(job=ours, state=state_of(ours), termination=termination, caps=Caps()),
        POLICY,
        in_place=True,
    )
    assert isinstance(next_, Relaunch)
    assert not next_.resume
    assert next_.change.limit == 200 * MIB
    assert next_.change.backoff_limit == 1


def test_a_kill_for_memory_uses_none_of_the_users_own_retries():
    next_ = after_failure(failed("oom-failjob", backoff_limit=2), POLICY, in_place=True)
    assert next_.change.backoff_limit == 2


def test_a_step_that_is_drained_runs_again_though_nothing_is_left_of_its_pod():
    next_ = after_failure(failed("drained"), POLICY, in_place=True)
    assert isinstance(next_, Relaunch)
    assert next_.resume
    assert next_.change.limit == 64 * MIB
    assert (next_.change.state.oom_retries, next_.change.state.disruptions) == (0, 1)
    assert next_.attempt.outcome == "evicted"


def test_a_deleted_pod_uses_one_of_the_users_own_retries():
    next_ = after_failure(failed("deleted", backoff_limit=1), POLICY, in_place=True)
    assert isinstance(next_, Relaunch)
    assert not next_.resume
    assert next_.change.backoff_limit == 0
    assert isinstance(after_failure(failed("deleted"), POLICY, in_place=True), GiveUp)


def test_an_eviction_for_memory_pressure_moves_the_step_and_costs_no_retry():
    job, pods = recording("oom-main")
    status = pods[0]["status"]
    status["containerStatuses"][0]["state"]["terminated"]["reason"] = "Error"
    status |= {"reason": "Evicted", "message": "The node was low on resource: memory."}
    status["conditions"].append(
        {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "TerminationByKubelet",
            "message": status["message"],
        }
    )
    ours = step_job()
    next_ = after_failure(
        FailedJob(job=ours, state=state_of(ours), termination=diagnose(job, pods), caps=Caps()),
        POLICY,
        in_place=True,
    )
    assert isinstance(next_, Relaunch)
    assert next_.change.limit == 200 * MIB
    assert (next_.change.state.oom_retries, next_.change.state.disruptions) == (0, 1)
    assert next_.change.avoid_node == "nodea"


def test_the_largest_node_is_tried_and_then_one_that_an_autoscaler_may_add():
    caps = Caps(node=Quantity(300 * MIB), node_name="small")
    first = after_failure(failed("oom-main", caps=caps), POLICY, in_place=True)
    assert first.change.limit == 300 * MIB
    plan = first.change.state.plan
    assert plan.cap is None  # a node that comes tomorrow counts
    caps = Caps(node=Quantity(200 * MIB), node_name="small")
    at_the_cap = after_failure(failed("oom-main", caps=caps), POLICY, in_place=True)
    assert at_the_cap.change.limit == 400 * MIB


def test_a_kill_at_the_users_cap_or_a_quotas_fails_and_names_it():
    for caps in (Caps(max_memory=Quantity(200 * MIB)), Caps(quota=Quantity(200 * MIB))):
        next_ = after_failure(failed("oom-main", caps=caps), POLICY, in_place=True)
        assert isinstance(next_, GiveUp)
        assert caps.binding.name in next_.reason


def unlimited(**changes):
    found = failed("oom-main", **changes)
    return dataclasses.replace(
        found, termination=dataclasses.replace(found.termination, memory=None)
    )


def test_a_step_without_a_limit_that_exhausts_its_node_runs_alone_to_show_its_need():
    caps = Caps(node=Quantity.parse("3Gi"), node_name="n")
    next_ = after_failure(unlimited(caps=caps), POLICY, in_place=True)
    assert next_.change.state.isolated
    assert next_.change.limit == Quantity.parse("3Gi")
    job = next_job(step_job(None), next_.change)
    terms = job["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert terms[0]["labelSelector"] == {
        "matchLabels": {"run_id": "r1"},
        "matchExpressions": [{"key": "step_name", "operator": "Exists"}],
    }


def test_where_nodes_may_not_be_read_it_runs_alone_without_a_limit():
    next_ = after_failure(unlimited(), POLICY, in_place=True)
    assert next_.change.limit is None
    job = next_job(step_job(None), next_.change)
    limit, request = memory_of(main_container(job))
    assert limit is None
    assert request == 400 * MIB
    spec = job["spec"]["template"]["spec"]
    assert "podAntiAffinity" in spec["affinity"]
    assert spec["tolerations"][0]["key"] == "node.kubernetes.io/memory-pressure"


def test_a_step_without_a_limit_that_is_evicted_for_memory_is_sized_too():
    found = unlimited()
    evidence = dataclasses.replace(
        found.termination.evidence,
        oom_killed=False,
        disruption="TerminationByKubelet: The node was low on resource: memory.",
    )
    found = dataclasses.replace(
        found, termination=dataclasses.replace(found.termination, evidence=evidence)
    )
    next_ = after_failure(found, POLICY, in_place=True)
    assert next_.change.state.isolated
    assert (next_.change.state.oom_retries, next_.change.state.disruptions) == (0, 1)


def test_a_pod_that_no_node_takes_is_seen_as_such():
    _, pods = recording("unschedulable")
    assert "Insufficient memory" in lacks_memory(pods[0])
    assert pod_memory(pods[0]["spec"]) == Quantity.parse("500Gi")


def test_the_failure_policy_ends_a_job_on_disruption_first_then_on_137_then_as_it_was():
    rules = step_job()["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["FailJob", "FailJob", "Count"]
    assert "onPodConditions" in rules[0]
    assert rules[1]["onExitCodes"]["values"] == [137]


def test_a_successors_name_is_the_same_whoever_computes_it_and_fits():
    state = AttemptState(base="x" * 63, number=12)
    assert next_job_name(state) == next_job_name(dataclasses.replace(state, oom_retries=3))
    assert len(next_job_name(state)) <= 63


def test_a_successor_takes_labels_owner_and_arguments_and_drops_what_the_server_set():
    job = copy.deepcopy(step_job())
    job["metadata"] |= {"uid": "u", "resourceVersion": "5", "ownerReferences": [{"uid": "o"}]}
    job["spec"]["selector"] = {"matchLabels": {"controller-uid": "u"}}
    labels = job["spec"]["template"]["metadata"]["labels"]
    labels |= {"job-name": "j", "controller-uid": "u", "batch.kubernetes.io/job-name": "j"}
    change = JobChange(
        state=dataclasses.replace(state_of(job), number=2),
        limit=Quantity(400 * MIB),
        step_run_id="s1",
    )
    new = next_job(job, change)
    assert new["metadata"]["name"] == "abc-step-pipe-m2"
    assert "uid" not in new["metadata"]
    assert new["metadata"]["ownerReferences"] == [{"uid": "o"}]
    assert "selector" not in new["spec"]
    kept = new["spec"]["template"]["metadata"]["labels"]
    assert not {"job-name", "controller-uid", "batch.kubernetes.io/job-name"} & set(kept)
    arguments = main_container(new)["args"]
    assert arguments[arguments.index("--step_run_id") + 1] == "s1"
    assert (
        arguments[3] == "zenml_ext.kubernetes.step.entrypoint.KubernetesStepEntrypointConfiguration"
    )


def test_a_foreign_entrypoint_is_left_alone():
    job = step_job()
    main_container(job)["args"] = ["python", "train.py"]
    again = prepare_step_job(job, plan=None, in_place=True)
    assert main_container(again)["args"] == ["python", "train.py"]


def test_of_a_step_and_its_successor_only_the_successor_counts():
    job = step_job()
    change = JobChange(state=dataclasses.replace(state_of(job), number=2), limit=None)
    new = next_job(job, change)
    for order in ([job, new], [new, job]):
        current, superseded = latest_jobs(order)
        assert current == [new]
        assert superseded == [job]
    patch = superseding_patch(job)
    assert patch["metadata"]["labels"]["run_id"] is None


@pytest.mark.parametrize("plan", [None, MemoryPlan(ladder=(Quantity(1), Quantity(5)), reason="r")])
def test_a_state_survives_its_annotation(plan):
    state = AttemptState(
        base="b", number=3, oom_retries=1, plan=plan, isolated=True, attempts=({"n": 1},)
    )
    job = {"metadata": {"annotations": {"mlops-ext.io/attempt-state": state.dump()}}}
    assert state_of(job) == state


def test_the_last_retry_gets_what_the_user_asked_for_also_after_many_orchestrators():
    plan = MemoryPlan(
        ladder=(Quantity.parse("180Mi"),), reason="learned", request=Quantity.parse("4Gi")
    )
    last = MemorySettings().max_oom_retries - 1
    state = AttemptState(base="b", number=last + 1, oom_retries=last, plan=plan)
    annotated = {"metadata": {"annotations": {"mlops-ext.io/attempt-state": state.dump()}}}
    job, pods = recording("oom-main")
    next_ = after_failure(
        FailedJob(
            job=step_job("180Mi"),
            state=state_of(annotated),
            termination=diagnose(job, pods),
            caps=Caps(node=Quantity.parse("16Gi")),
        ),
        POLICY,
        in_place=True,
    )
    assert isinstance(next_, Relaunch)
    assert next_.change.limit == Quantity.parse("4Gi")
    assert next_.change.state.plan.request == Quantity.parse("4Gi")
