"""The supervisor on the double's API: deaths at any moment, bad weather, what can never run.

Real Kubernetes client, ZenML's real look at a Job; pods end as told, without a process.
"""

import inspect
from types import SimpleNamespace
from uuid import uuid4

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client, config
from tests.kubedouble import Cluster, Fault
from zenml.enums import ExecutionStatus
from zenml.integrations.kubernetes import kube_utils

from mlops_ext.memory import DoublePolicy, MemoryPlan, MemorySettings, Quantity
from zenml_ext.kubernetes_api import KubeApi, persistently
from zenml_ext.kubernetes_book import StepRow
from zenml_ext.kubernetes_jobs import latest_jobs
from zenml_ext.kubernetes_supervisor import Supervisor

RUN = "11111111-1111-1111-1111-111111111111"
JobStatus = kube_utils.JobStatus
OPTIONS = {"fail_on_container_waiting_reasons": ["ErrImagePull"]}
if "max_retries" in inspect.signature(kube_utils.check_job_status).parameters:
    OPTIONS["max_retries"] = 0


class FakeBook:
    """ZenML's server, as far as the supervisor asks it."""

    def __init__(self):
        self.row_ = StepRow(identifier=uuid4(), status=ExecutionStatus.RUNNING)
        self.records, self.beats, self.stopping = [], 0, [False]
        self.limit = Quantity.parse("200Mi")

    def plan(self, facts, run_id):
        return MemoryPlan(ladder=(self.limit,) if self.limit else (), reason="test")

    def newest_row(self, run_id, step_name):
        return self.row_

    def is_stopping(self, run_id):
        return self.stopping.pop(0) if len(self.stopping) > 1 else self.stopping[0]

    def beat(self, row):
        self.beats += 1
        return True

    def record(self, run_id, step_name, row, attempts):
        self.records.append((step_name, list(attempts)))


def facts(name):
    settings = SimpleNamespace(in_place=True, max_memory=None, pending_timeout_min=10)
    policy = DoublePolicy(settings=MemorySettings())
    return SimpleNamespace(name=name, family="f", policy=policy, max_memory=None, settings=settings)


@pytest.fixture
def cluster():
    with Cluster({"node-a": "4Gi"}, real=False, tls=False) as double:
        config.load_kube_config(str(double.kubeconfig()))
        yield double


class Orchestrator:
    """What a pod of the orchestrator does with the supervisor; make another one to restart."""

    def __init__(self, cluster, book):
        self.cluster, self.book = cluster, book
        self.batch, self.core = client.BatchV1Api(), client.CoreV1Api()
        self.supervisor = Supervisor(facts, book=book)
        self.api = KubeApi(self.batch, self.core, "zenml")

    def start(self, ends, name="a-step", step="step", limit="200Mi", backoff_limit=0):
        resources = {"limits": {"memory": limit}} if limit else {"requests": {"memory": "400Mi"}}
        labels = {"run_id": RUN, "step_name": step}
        manifest = {
            "metadata": {
                "name": name,
                "labels": labels,
                "annotations": {"zenml.io/step-name": step},
            },
            "spec": {
                "backoffLimit": backoff_limit,
                "template": {
                    "metadata": {"labels": dict(labels), "annotations": {"double/ends": ends}},
                    "spec": {
                        "restartPolicy": "Never",
                        "containers": [{"name": "main", "image": "i", "resources": resources}],
                    },
                },
            },
        }
        self.supervisor.create(self.api, self.supervisor.prepare(manifest, facts(step), RUN))
        return name

    def check(self, name):
        return self.supervisor.check(
            batch_api=self.batch, core_api=self.core, namespace="zenml", job_name=name, **OPTIONS
        )

    def until_over(self, name, looks=400):
        for _ in range(looks):
            found = self.check(name)
            if found[0] is not JobStatus.RUNNING:
                return found
            version = self.cluster.store.version
            with self.cluster.store.lock:
                if self.cluster.store.version == version:
                    self.cluster.store.lock.wait(0.05)
        pytest.fail(f"never over: {found}")

    def take_over(self):
        """What ZenML's entrypoint does when it goes on with a run: name of the Job by step."""
        jobs = self.supervisor.take_over(self.api, self.api.jobs(f"run_id={RUN}"))
        return {job["metadata"]["annotations"]["zenml.io/step-name"]: job for job in jobs}


def failed_job(cluster, name):
    return cluster.wait_for(
        lambda: [
            job
            for job in cluster.list("jobs")
            if job["metadata"]["name"] == name
            and any(c["type"] == "Failed" for c in job["status"].get("conditions", []))
        ]
    )


def names(cluster, labels=f"run_id={RUN}"):
    return [job["metadata"]["name"] for job in cluster.list("jobs", labels)]


def limits(cluster):
    return [
        job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        for job in cluster.list("jobs")
    ]


def test_a_killed_step_is_followed_and_taken_out_of_zenmls_look_ups(cluster):
    book = FakeBook()
    ours = Orchestrator(cluster, book)
    name = ours.start("137 OOMKilled 0;137 OOMKilled 0;0 Completed 0")
    assert ours.until_over(name) == (JobStatus.SUCCEEDED, None)
    assert limits(cluster) == ["200Mi", "400Mi", "800Mi"]
    assert names(cluster) == ["a-step-m3"]
    assert [len(attempts) for _, attempts in book.records] == [1, 2]
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
    ours = Orchestrator(cluster, FakeBook())
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
    book = FakeBook()
    first = Orchestrator(cluster, book)
    name = first.start("137 OOMKilled 0;0 Completed 0.2")
    failed_job(cluster, name)
    left = [moment]

    def die(call):
        if left[0] == 0:
            raise Died
        left[0] -= 1

    dying = Orchestrator(cluster, book)
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
    last = Orchestrator(cluster, book)
    job = last.take_over()["step"]
    assert not [c for c in job["status"].get("conditions", []) if c["type"] == "Failed"]
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

    from zenml_ext import kubernetes_entrypoint

    for name in ("create_job", "list_jobs", "check_job_status"):
        monkeypatch.setattr(kube_utils, name, getattr(kube_utils, name))
    ours = Orchestrator(cluster, FakeBook())
    name = ours.start("137 OOMKilled 0;0 Completed 0")
    failed_job(cluster, name)
    if side == "ours":
        kubernetes_entrypoint.install("none")
    spec = SimpleNamespace(upstream_steps=[])
    (node,) = kubernetes_orchestrator_entrypoint._reconstruct_nodes(
        snapshot=SimpleNamespace(step_configurations={"step": SimpleNamespace(spec=spec)}),
        pipeline_run=SimpleNamespace(id=RUN, steps={}),
        namespace="zenml",
        batch_api=ours.batch,
    )
    assert node.status.value == {"bare": "failed", "ours": "running"}[side]


def test_two_orchestrators_at_once_create_one_follower(cluster):
    book = FakeBook()
    one, other = Orchestrator(cluster, book), Orchestrator(cluster, book)
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
    book = FakeBook()
    ours = Orchestrator(cluster, book)
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
    ours = Orchestrator(cluster, FakeBook())
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
        persistently(refused, sleep=lambda _: pytest.fail("waited for a refusal to pass"))


def test_what_no_node_can_ever_run_fails_at_once_and_names_the_node(cluster):
    ours = Orchestrator(cluster, FakeBook())
    ours.book.limit = Quantity.parse("64Gi")
    name = ours.start("0 Completed 0", limit="64Gi")
    status, message = ours.until_over(name)
    assert status is JobStatus.FAILED
    assert "asks for 64Gi" in message
    assert "node-a has 4Gi" in message
    assert cluster.wait_for(lambda: not cluster.list("pods", "step_name=step"))


def test_a_node_that_an_autoscaler_is_about_to_add_is_waited_for(cluster):
    ours = Orchestrator(cluster, FakeBook())
    ours.book.limit = Quantity.parse("64Gi")
    name = ours.start("0 Completed 0", limit="64Gi")
    pod = cluster.wait_for(lambda: cluster.list("pods", "step_name=step"))[0]
    meta = {"name": "e1"}
    involved = {"kind": "Pod", "name": pod["metadata"]["name"]}
    event = {"kind": "Event", "metadata": meta, "involvedObject": involved}
    cluster.store.create("events", "zenml", {**event, "reason": "TriggeredScaleUp"})
    for _ in range(3):
        assert ours.check(name)[0] is JobStatus.RUNNING


def without_nodes(cluster):
    """An orchestrator that may not list nodes, with a clock of its own; its step fits no node."""
    cluster.denied = lambda user, verb, resource: resource == "nodes"
    ours = Orchestrator(cluster, FakeBook())
    ours.book.limit = Quantity.parse("64Gi")
    clock = [1000.0]
    ours.supervisor._clock = lambda: clock[0]
    name = ours.start("0 Completed 0", limit="64Gi")
    cluster.wait_for(
        lambda: [
            condition
            for pod in cluster.list("pods", "step_name=step")
            for condition in pod["status"].get("conditions") or ()
            if condition.get("reason") == "Unschedulable"
        ]
    )
    return ours, name, clock


def test_without_the_right_to_list_nodes_a_wait_for_memory_is_told_and_bounded(cluster, caplog):
    ours, name, clock = without_nodes(cluster)
    for _ in range(3):
        status, message = ours.check(name)
        assert status is JobStatus.RUNNING
        assert "asks for 64Gi of memory, which no node has free now" in message
        clock[0] += 100
    assert caplog.text.count("Step step waits") == 1
    ours.book.limit = Quantity.parse("200Mi")
    other = ours.start("0 Completed 300", name="other", step="other")
    cluster.wait_for(
        lambda: [
            p for p in cluster.list("pods", "step_name=other") if p["status"]["phase"] == "Running"
        ]
    )
    clock[0] += 600
    assert ours.check(name)[0] is JobStatus.RUNNING  # the other one may make room
    ours.api.delete_job(other)
    cluster.wait_for(
        lambda: (
            not [
                p
                for p in cluster.list("pods", "step_name=other")
                if p["status"]["phase"] == "Running"
            ]
        )
    )
    clock[0] += 599
    assert ours.check(name)[0] is JobStatus.RUNNING
    clock[0] += 2
    status, message = ours.check(name)
    assert status is JobStatus.FAILED
    assert "for 10 min" in message
    assert "Insufficient memory" in message
    assert "right to list nodes" in message
    assert cluster.wait_for(lambda: not cluster.list("pods", "step_name=step"))


def test_without_the_right_to_list_nodes_an_autoscaler_that_gave_up_is_believed(cluster):
    ours, name, clock = without_nodes(cluster)
    assert ours.check(name)[0] is JobStatus.RUNNING
    (pod,) = cluster.list("pods", "step_name=step")
    involved = {"kind": "Pod", "name": pod["metadata"]["name"]}
    event = {"kind": "Event", "metadata": {"name": "e1"}, "involvedObject": involved}
    cluster.store.create("events", "zenml", {**event, "reason": "NotTriggerScaleUp"})
    clock[0] += 60
    status, message = ours.check(name)
    assert status is JobStatus.FAILED
    assert "autoscaler" in message


def test_a_limit_range_that_refuses_for_good_is_told_and_not_waited_for(cluster):
    limit = {"type": "Container", "max": {"memory": "100Mi"}}
    cluster.store.create(
        "limitranges",
        "zenml",
        {"kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [limit]}},
    )
    ours = Orchestrator(cluster, FakeBook())
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
    ours = Orchestrator(cluster, FakeBook())
    status, message = ours.until_over(ours.start("0 Completed 0"))
    assert status is JobStatus.FAILED
    assert "quota team" in message
    assert "can never run" in message


def test_a_quota_in_use_is_told_and_waited_for(cluster):
    quota(cluster, "300Mi")
    ours = Orchestrator(cluster, FakeBook())
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
    ours = Orchestrator(cluster, FakeBook())
    status, message = ours.until_over(ours.start("137 OOMKilled 0"))
    assert status is JobStatus.FAILED
    assert limits(cluster) == ["200Mi", "300Mi"]
    assert "ResourceQuota" in message


def test_a_run_that_is_being_stopped_gets_no_follower(cluster):
    book = FakeBook()
    book.stopping = [True]
    ours = Orchestrator(cluster, book)
    assert ours.until_over(ours.start("137 OOMKilled 0"))[0] is JobStatus.FAILED
    assert len(cluster.list("jobs")) == 1


def test_a_stop_that_missed_the_follower_still_ends_it(cluster):
    book = FakeBook()
    book.stopping = [False, True]
    ours = Orchestrator(cluster, book)
    assert ours.until_over(ours.start("137 OOMKilled 0;0 Completed 60"))[0] is JobStatus.FAILED
    assert names(cluster, "mlops-ext.io/attempt=2") == []


def test_a_follower_that_waits_for_a_node_keeps_the_step_run_alive(cluster):
    book = FakeBook()
    ours = Orchestrator(cluster, book)
    name = ours.start("137 OOMKilled 0;0 Completed 0")
    failed_job(cluster, name)
    cluster.pause_jobs.set()
    ours.check(name)
    clock = [0.0]
    ours.supervisor._clock = lambda: clock[0]
    ours.supervisor._watches[name].beat_at = -100.0
    before = book.beats
    for _ in range(4):
        clock[0] += 10
        ours.check(name)
    assert book.beats - before == 2


def test_a_deleted_job_is_a_failed_step_that_zenml_may_find_completed(cluster):
    ours = Orchestrator(cluster, FakeBook())
    name = ours.start("0 Completed 60")
    ours.api.delete_job(name)
    assert ours.check(name)[0] is JobStatus.FAILED


def test_after_a_node_ran_out_one_step_shows_its_need_and_the_others_wait(cluster):
    book = FakeBook()
    book.limit = None
    ours = Orchestrator(cluster, book)
    jobs = [
        ours.start("137 OOMKilled 0;0 Completed 0.2", name=f"j{i}", step=f"s{i}", limit=None)
        for i in range(3)
    ]
    for job in jobs:
        failed_job(cluster, job)
    for job in jobs:
        ours.check(job)
    followers = [n for n in names(cluster) if n.endswith("-m2")]
    assert followers == ["j0-m2"]
    for job in jobs:
        assert ours.until_over(job)[0] is JobStatus.SUCCEEDED
    current, _ = latest_jobs(cluster.list("jobs"))
    assert len(current) == 3


def test_an_image_that_cannot_be_pulled_fails_as_it_does_on_zenml(cluster):
    ours = Orchestrator(cluster, FakeBook())
    cluster.kubelet.real, cluster.kubelet.images = True, {}
    status, message = ours.until_over(ours.start("0 Completed 0"))
    assert status is JobStatus.FAILED
    assert "ErrImagePull" in message
