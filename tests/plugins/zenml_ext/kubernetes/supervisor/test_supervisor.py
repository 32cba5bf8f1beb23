"""The supervisor on the double's API: deaths at any moment, bad weather, stops.

Real Kubernetes client, ZenML's real check of a Job; pods end as told, without a process.
"""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client
from tests.doubles.kubernetes import Fault
from tests.doubles.kubernetes.orchestrator import (
    OPTIONS,
    RUN,
    FakeStepRuns,
    JobStatus,
    Orchestrator,
    facts,
    failed_job,
    limits,
    names,
    step_job,
)
from zenml.integrations.kubernetes import kube_utils

from mlops_ext import apply
from zenml_ext.kubernetes.client import retry_call
from zenml_ext.kubernetes.supervisor.step_runs import asking


def test_a_killed_step_is_followed_and_taken_out_of_zenmls_look_ups(cluster):
    step_runs = FakeStepRuns()
    ours = Orchestrator(cluster, step_runs)
    name = ours.start("137 OOMKilled 0;137 OOMKilled 0;0 Completed 0")
    assert ours.until_over(name) == (JobStatus.SUCCEEDED, None)
    assert limits(cluster) == ["200Mi", "400Mi", "800Mi"]
    assert names(cluster) == ["a-step-m3"]
    assert [len(attempts) for _, attempts in step_runs.records] == [1, 2]
    events = [e["reason"] for e in cluster.list("events") if e["reason"] == "MemoryRetry"]
    assert len(events) == 2


def bare_calls(cluster):
    """Calls of ZenML's own check, for a step that runs and completes."""
    batch, core = client.BatchV1Api(), client.CoreV1Api()
    template = {
        "metadata": {"annotations": {"double/ends": "0 Completed 0"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "main", "image": "i"}]},
    }
    return batch, core, {"metadata": {"name": "bare"}, "spec": {"template": template}}


def test_while_nothing_is_killed_there_is_no_call_that_zenml_would_not_make(cluster):
    cluster.pause_jobs.set()
    batch, core, manifest = bare_calls(cluster)
    begin = len(cluster.calls)
    kube_utils.create_job(batch_api=batch, namespace="zenml", job_manifest=manifest)
    for _ in range(3):
        kube_utils.check_job_status(
            batch_api=batch, core_api=core, namespace="zenml", job_name="bare", **OPTIONS
        )
    cluster.pause_jobs.clear()
    finished(cluster, "bare")
    kube_utils.check_job_status(
        batch_api=batch, core_api=core, namespace="zenml", job_name="bare", **OPTIONS
    )
    bare = [(call.verb, call.resource) for call in cluster.calls[begin:]]
    cluster.pause_jobs.set()
    ours = Orchestrator(cluster, FakeStepRuns())
    begin = len(cluster.calls)
    name = ours.start("0 Completed 0")
    for _ in range(3):
        assert ours.check(name)[0] is JobStatus.RUNNING
    cluster.pause_jobs.clear()
    finished(cluster, name)
    assert ours.check(name)[0] is JobStatus.SUCCEEDED
    assert [(call.verb, call.resource) for call in cluster.calls[begin:]] == bare


def finished(cluster, name):
    cluster.wait_for(
        lambda: [
            j
            for j in cluster.list("jobs")
            if j["metadata"]["name"] == name and j["status"].get("conditions")
        ]
    )


class Died(BaseException):
    """The orchestrator's process ends here."""


@pytest.mark.parametrize("moment", range(12))
def test_an_orchestrator_that_dies_at_any_call_leaves_no_step_lost_or_doubled(cluster, moment):
    """Die before the n-th call after the kill, for each n; another orchestrator goes on."""
    step_runs = FakeStepRuns()
    first = Orchestrator(cluster, step_runs)
    name = first.start("137 OOMKilled 0;0 Completed 0.2")
    failed_job(cluster, name)
    left = [moment]

    def die(call):
        if left[0] == 0:
            raise Died
        left[0] -= 1

    dying = Orchestrator(cluster, step_runs)
    for api in (dying.batch, dying.core):
        original = api.api_client.call_api

        def call_api(*args, _original=original, **kwargs):
            die(args)
            return _original(*args, **kwargs)

        api.api_client.call_api = call_api
    try:
        job = dying.take_over()["step"]["metadata"]["name"]
        dying.until_over(job)
    except Died:
        pass
    last = Orchestrator(cluster, step_runs)
    job = last.take_over()["step"]
    assert last.until_over(job["metadata"]["name"])[0] is JobStatus.SUCCEEDED
    assert names(cluster) == ["a-step-m2"]
    pods = cluster.list("pods", "step_name=step")
    assert sorted(pod["status"]["phase"] for pod in pods) == ["Failed", "Succeeded"]


@pytest.mark.parametrize("side", ["bare", "ours"])
def test_zenml_takes_a_kill_between_two_orchestrators_for_a_failure_and_we_do_not(
    cluster, side, monkeypatch
):
    """What ZenML's entrypoint makes of the Jobs it finds when it goes on with a run."""
    from zenml.integrations.kubernetes.orchestrators import kubernetes_orchestrator_entrypoint

    from zenml_ext.kubernetes.supervisor import entrypoint
    from zenml_ext.processes import ORCHESTRATOR_POD

    ours = Orchestrator(cluster, FakeStepRuns())
    name = ours.start("137 OOMKilled 0;0 Completed 0")
    failed_job(cluster, name)
    spec = SimpleNamespace(upstream_steps=[])
    run = entrypoint.SupervisedRun("none")
    monkeypatch.setattr(entrypoint, "_active", run)
    with apply("zenml", process=ORCHESTRATOR_POD) if side == "ours" else nullcontext():
        (node,) = kubernetes_orchestrator_entrypoint._reconstruct_nodes(
            snapshot=SimpleNamespace(step_configurations={"step": SimpleNamespace(spec=spec)}),
            pipeline_run=SimpleNamespace(id=RUN, steps={}),
            namespace="zenml",
            batch_api=ours.batch,
        )
    assert node.status.value == {"bare": "failed", "ours": "running"}[side]


def test_two_orchestrators_at_once_create_one_successor(cluster):
    step_runs = FakeStepRuns()
    one, other = Orchestrator(cluster, step_runs), Orchestrator(cluster, step_runs)
    name = one.start("137 OOMKilled 0;0 Completed 0")
    failed_job(cluster, name)
    one.check(name)
    other.check(name)
    assert one.until_over(name)[0] is other.until_over(name)[0] is JobStatus.SUCCEEDED
    assert len(cluster.list("pods", "step_name=step")) == 2


@pytest.mark.parametrize("code", [401, 409, 429, 500, 503])
@pytest.mark.parametrize("after", [False, True], ids=["refused", "answer lost"])
@pytest.mark.parametrize("verb", ["get", "list", "create", "patch"])
def test_an_api_error_never_fails_a_step(cluster, code, after, verb):
    step_runs = FakeStepRuns()
    ours = Orchestrator(cluster, step_runs)
    name = ours.start("137 OOMKilled 0;0 Completed 0")
    failed_job(cluster, name)
    cluster.faults.append(
        Fault(code=code, times=2, after=after, applies=lambda call: call.verb == verb)
    )
    assert ours.until_over(name)[0] is JobStatus.SUCCEEDED
    assert len(cluster.list("pods", "step_name=step")) == 2
    assert names(cluster) == ["a-step-m2"]


@pytest.mark.skipif("max_retries" not in OPTIONS, reason="this ZenML retries for seconds first")
@pytest.mark.parametrize("code", [401, 429, 500])
def test_zenmls_own_check_fails_on_such_an_error(cluster, code):
    batch, core, manifest = bare_calls(cluster)
    kube_utils.create_job(batch_api=batch, namespace="zenml", job_manifest=manifest)
    cluster.faults.append(Fault(code=code, applies=lambda call: call.verb == "get"))
    with pytest.raises(client.ApiException):
        kube_utils.check_job_status(
            batch_api=batch, core_api=core, namespace="zenml", job_name="bare", **OPTIONS
        )


def test_a_first_job_is_created_through_errors_and_only_once(cluster):
    ours = Orchestrator(cluster, FakeStepRuns())
    cluster.faults += [
        Fault(code=429, applies=lambda call: call.verb == "create"),
        Fault(code=500, after=True, applies=lambda call: call.verb == "create"),
    ]
    name = ours.start("0 Completed 0")
    assert ours.until_over(name)[0] is JobStatus.SUCCEEDED
    assert len(cluster.list("jobs")) == 1


def test_persistence_ends_with_errors_that_do_not_pass():
    def refused():
        raise client.ApiException(status=403)

    with pytest.raises(client.ApiException):
        retry_call(refused, sleep=lambda _: pytest.fail("waited for a refusal to pass"))


def test_a_run_that_is_being_stopped_gets_no_successor(cluster):
    step_runs = FakeStepRuns()
    step_runs.stopping = [True]
    ours = Orchestrator(cluster, step_runs)
    assert ours.until_over(ours.start("137 OOMKilled 0"))[0] is JobStatus.FAILED
    assert len(cluster.list("jobs")) == 1
    assert step_runs.stopped == [step_runs.step_run_]  # no pod is left to say so


@pytest.mark.parametrize("answers", [0, 1], ids=["before the successor", "after it"])
def test_a_step_whose_run_is_gone_from_zenmls_server_fails_at_once_and_leaves_no_job(
    cluster, answers
):
    class Gone(FakeStepRuns):
        @asking()
        def is_stopping(self, run_id):
            self.asked_ = getattr(self, "asked_", 0) + 1
            if self.asked_ > answers:
                raise KeyError(f"no pipeline run {run_id}")
            return False

    ours = Orchestrator(cluster, Gone())
    status, message = ours.until_over(ours.start("137 OOMKilled 0;0 Completed 60"))
    assert status is JobStatus.FAILED
    assert "no pipeline run" in message
    assert names(cluster, "mlops-ext.io/attempt=2") == []


def test_a_stop_that_missed_the_successor_still_ends_it(cluster):
    step_runs = FakeStepRuns()
    step_runs.stopping = [False, True]
    ours = Orchestrator(cluster, step_runs)
    assert ours.until_over(ours.start("137 OOMKilled 0;0 Completed 60"))[0] is JobStatus.FAILED
    assert names(cluster, "mlops-ext.io/attempt=2") == []
    assert step_runs.stopped == [step_runs.step_run_]


def test_a_stop_that_deletes_the_job_before_its_pod_begins_ends_the_step_too(cluster):
    step_runs = FakeStepRuns()
    ours = Orchestrator(cluster, step_runs)
    name = ours.start("0 Completed 60")
    assert ours.check(name)[0] is JobStatus.RUNNING
    step_runs.stopping = [True]
    ours.api.delete_job(name)
    assert ours.check(name)[0] is JobStatus.FAILED
    assert step_runs.stopped == [step_runs.step_run_]


def test_a_stop_ends_a_step_whose_next_pod_has_not_begun(cluster):
    now, step_runs = [0.0], FakeStepRuns()
    ours = Orchestrator(cluster, step_runs, lambda: now[0])
    name = ours.start("137 OOMKilled 0;0 Completed 0")
    failed_job(cluster, name)
    cluster.pause_jobs.set()
    for _ in range(2):
        assert ours.check(name)[0] is JobStatus.RUNNING
    assert names(cluster, "mlops-ext.io/attempt=2") == ["a-step-m2"]
    step_runs.stopping, now[0] = [True], now[0] + 30
    assert ours.check(name)[0] is JobStatus.FAILED
    assert step_runs.stopped == [step_runs.step_run_]
    assert names(cluster, "mlops-ext.io/attempt=2") == []


@pytest.mark.parametrize("point", ["killed", "relaunched", "deleted"])
def test_a_stop_after_which_zenml_asks_no_more_ends_a_step_without_a_pod(cluster, point):
    """ZenML's loop ends within a second of a stop, wherever a step is."""
    step_runs = FakeStepRuns()
    ours = Orchestrator(cluster, step_runs)
    name = ours.start("0 Completed 600")
    assert cluster.wait_for(lambda: cluster.list("jobs")[0]["status"].get("ready"))
    assert ours.check(name)[0] is JobStatus.RUNNING
    cluster.evict(cluster.list("pods")[0], "The node was low on resource: memory. ")
    failed_job(cluster, name)
    cluster.pause_jobs.set()
    if point == "relaunched":
        assert ours.check(name)[0] is JobStatus.RUNNING
        assert names(cluster, "mlops-ext.io/attempt=2") == ["a-step-m2"]
    elif point == "deleted":
        ours.api.delete_job(name)
    ours.supervisor.close()
    assert step_runs.stopped == []  # nobody has stopped it
    step_runs.stopping = [True]
    ours.supervisor.close()
    assert step_runs.stopped == [step_runs.step_run_]
    assert names(cluster, "mlops-ext.io/attempt=2") == []


def test_at_the_end_a_server_that_is_away_is_asked_once_however_many_steps_there_are(cluster):
    asked = []

    class Away(FakeStepRuns):
        @asking()
        def is_stopping(self, run_id):
            asked.append(run_id)
            raise ConnectionError("no route")

    ours = Orchestrator(cluster, Away())
    for name in ("a-step", "b-step"):
        ours.check(ours.start("0 Completed 600", name=name, step=name))
    ours.supervisor.close()
    assert len(asked) == 1


def test_a_stop_leaves_a_pod_that_runs_to_its_own_process(cluster):
    step_runs = FakeStepRuns()
    ours = Orchestrator(cluster, step_runs)
    name = ours.start("0 Completed 600")
    assert cluster.wait_for(lambda: cluster.list("jobs")[0]["status"].get("ready"))
    assert ours.check(name)[0] is JobStatus.RUNNING
    step_runs.stopping = [True]
    ours.supervisor.close()
    assert (step_runs.stopped, len(cluster.list("jobs"))) == ([], 1)


def test_a_step_operators_pod_that_was_killed_for_memory_is_named(cluster):
    ours = Orchestrator(cluster, FakeStepRuns())
    name = ours.start("1 Error 0")
    operator = step_job("an-operators", "step", "137 OOMKilled 0", limit="300Mi")
    ours.batch.create_namespaced_job("zenml", operator)
    failed_job(cluster, "an-operators")
    status, message = ours.until_over(name)
    assert status is JobStatus.FAILED
    assert "The step operator's pod an-operators" in message
    assert "was killed for memory at its limit of 300Mi" in message


def test_a_relaunched_job_keeps_fields_that_no_client_knows(cluster):
    """ZenML pins a client that drops what came after it: sidecars' restart policies among it."""
    ours = Orchestrator(cluster, FakeStepRuns())
    manifest = step_job("a-step", "step", "137 OOMKilled 0;0 Completed 0")
    pod = manifest["spec"]["template"]["spec"]
    pod["initContainers"] = [{"name": "side", "image": "i", "restartPolicy": "Always"}]
    pod["fieldOfTomorrow"] = {"kept": [True]}
    pod["containers"][0]["fieldOfTomorrow"] = 1
    ours.supervisor.create(ours.api, ours.supervisor.prepare(manifest, facts("step"), RUN))
    assert ours.until_over("a-step") == (JobStatus.SUCCEEDED, None)
    old, new = (
        job["spec"]["template"]["spec"]
        for job in sorted(cluster.list("jobs"), key=lambda job: len(job["metadata"]["name"]))
    )
    assert new["initContainers"] == old["initContainers"]
    assert new["initContainers"][0]["restartPolicy"] == "Always"
    assert new["fieldOfTomorrow"] == {"kept": [True]}
    assert new["containers"][0]["fieldOfTomorrow"] == 1


def test_a_deleted_job_is_a_failed_step_that_zenml_may_find_completed(cluster):
    ours = Orchestrator(cluster, FakeStepRuns())
    name = ours.start("0 Completed 60")
    ours.api.delete_job(name)
    assert ours.check(name)[0] is JobStatus.FAILED


def test_an_image_that_cannot_be_pulled_fails_as_it_does_on_zenml(cluster):
    ours = Orchestrator(cluster, FakeStepRuns())
    cluster.kubelet.real, cluster.kubelet.images = True, {}
    status, message = ours.until_over(ours.start("0 Completed 0"))
    assert status is JobStatus.FAILED
    assert "ErrImagePull" in message


def test_a_drained_step_goes_on_with_the_same_memory_though_its_pod_is_gone(cluster):
    step_runs = FakeStepRuns()
    ours = Orchestrator(cluster, step_runs)
    name = ours.start("0 Completed 300;0 Completed 0")
    (pod,) = cluster.wait_for(
        lambda: [p for p in cluster.list("pods") if p["status"]["phase"] == "Running"]
    )
    meta = {"name": pod["metadata"]["name"], "namespace": "zenml"}
    ours.core.create_namespaced_pod_eviction(
        meta["name"], "zenml", client.V1Eviction(metadata=client.V1ObjectMeta(**meta))
    )
    cluster.wait_for(lambda: not cluster.list("pods", f"job-name={name}"))
    assert ours.until_over(name) == (JobStatus.SUCCEEDED, None)
    assert limits(cluster) == ["200Mi", "200Mi"]
    ((_, (attempt,)),) = step_runs.records
    assert attempt["outcome"] == "evicted"
