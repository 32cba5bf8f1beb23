"""No secret leaves through zenml_ext: not by a log, an error, an event, an annotation, a record."""

import json
import logging
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest

pytest.importorskip("kubernetes")

from kubernetes import client, config
from tests.doubles.kubernetes import Cluster, Fault
from zenml.enums import ExecutionStatus
from zenml.integrations.kubernetes import kube_utils

from mlops_ext import redaction
from mlops_ext.memory import (
    Features,
    MemoryPlan,
    MemorySettings,
    Quantity,
    RequestPolicy,
    TaskKey,
)
from zenml_ext.kubernetes.client import KubeApi, describe_api_error
from zenml_ext.kubernetes.supervisor.step_runs import StepRun, asking
from zenml_ext.kubernetes.supervisor.supervisor import Supervisor
from zenml_ext.memory import records as metadata
from zenml_ext.memory.history import past_attempts

SECRET = "s3cr3t-8f1e7a"
JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ6ZW5tbCJ9.c2lnbmF0dXJl"
RUN = "11111111-1111-1111-1111-111111111111"
URL = f"mysql://zenml:{SECRET}@db.example.org:3306/zenml"
TEXTS = [
    f"cannot connect to {URL}",
    f"401 for url https://user:{SECRET}@zenml.example.org/api/v1/login",
    f"header Authorization: Bearer {SECRET}-and-more",
    f"kubeconfig {{'users': [{{'name': 'me', 'user': {{'token': '{SECRET}'}}}}]}}",
    f'spec.template.spec.containers[0].env: {{"name": "ZENML_STORE_API_TOKEN", "value": "{SECRET}"}}',
    f"ZENML_STORE_PASSWORD={SECRET} is wrong",
]


@pytest.fixture(autouse=True)
def in_the_environment(monkeypatch):
    """As in a pod: ZenML's credentials are variables of the process."""
    monkeypatch.setenv("ZENML_STORE_API_TOKEN", SECRET)
    monkeypatch.setenv("ZENML_STORE_URL", URL)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("known", [True, False], ids=["in our environment", "of somebody else"])
def test_an_error_of_somebody_else_is_told_without_its_secret(text, known, monkeypatch):
    if not known:
        monkeypatch.delenv("ZENML_STORE_API_TOKEN")
    last_message = redaction.redacted(RuntimeError(text))
    assert SECRET not in last_message
    assert last_message.startswith("RuntimeError: ")
    assert text[:8] in last_message


def test_a_token_without_a_name_is_known_by_its_form():
    assert JWT not in redaction.redacted(RuntimeError(f"bad credentials {JWT}"))


@pytest.mark.parametrize(
    "text", ["Insufficient memory", "no node has 4Gi", "https://zenml.example.org/api", "a: b"]
)
def test_what_is_no_secret_is_told_as_it_is(text):
    assert redaction.redact(text) == text


@pytest.mark.parametrize("body", [*TEXTS, json.dumps({"message": TEXTS[1]})])
def test_an_api_error_is_told_without_its_secret(body):
    error = client.ApiException(status=422, reason="Unprocessable")
    error.body = body
    assert SECRET not in describe_api_error(error)
    assert "422" in describe_api_error(error)


class Leaking:
    """A ZenML server that tells its secrets when it is asked at the wrong moment."""

    def __init__(self, *, asks_until_fine):
        self.left = asks_until_fine
        self.records = []

    def _fail(self):
        if self.left:
            self.left -= 1
            raise RuntimeError(" ".join(TEXTS))

    def features(self, *_):
        return Features()

    def plan(self, *_):
        self._fail()
        return MemoryPlan(ladder=(Quantity.parse("200Mi"),), reason="test")

    @asking()
    def newest(self, *_):
        self._fail()
        return StepRun(identifier=uuid4(), status=ExecutionStatus.RUNNING)

    @asking()
    def is_stopping(self, *_):
        self._fail()
        return False

    def heartbeat(self, *_):
        raise RuntimeError(" ".join(TEXTS))

    def record(self, run_id, step_name, step_run, attempts):
        self.records.append(json.dumps(list(attempts)))


def facts(name):
    settings = SimpleNamespace(in_place=True, max_memory=None)
    policy = RequestPolicy(settings=MemorySettings())
    resources = SimpleNamespace(resource_settings=SimpleNamespace(memory="200MiB"))
    settings.memory = None
    return SimpleNamespace(
        name=name,
        key=TaskKey(pipeline="p", step=name),
        policy=policy,
        max_memory=None,
        settings=settings,
        step=SimpleNamespace(config=resources),
    )


def job():
    """A step's Job as ZenML makes it: the store's token stands in its environment."""
    labels = {"run_id": RUN, "step_name": "step"}
    container = {
        "name": "main",
        "image": "i",
        "resources": {"limits": {"memory": "200Mi"}},
        "env": [
            {"name": "ZENML_STORE_API_TOKEN", "value": SECRET},
            {"name": "ZENML_STORE_URL", "value": URL},
        ],
    }
    return {
        "metadata": {
            "name": "a-step",
            "labels": labels,
            "annotations": {"zenml.io/step-name": "step"},
        },
        "spec": {
            "backoffLimit": 0,
            "template": {
                "metadata": {
                    "labels": dict(labels),
                    "annotations": {"double/ends": "137 OOMKilled 0;0 Completed 0"},
                },
                "spec": {"restartPolicy": "Never", "containers": [container]},
            },
        },
    }


def test_a_retry_through_errors_shows_no_secret_anywhere_but_where_zenml_put_it(caplog):
    caplog.set_level(logging.DEBUG, logger="zenml_ext")
    step_runs, messages = Leaking(asks_until_fine=4), []
    with Cluster({"node-a": "4Gi"}, real=False, tls=False) as cluster:
        config.load_kube_config(str(cluster.kubeconfig()))
        batch, core = client.BatchV1Api(), client.CoreV1Api()
        supervisor = Supervisor(facts, step_runs=step_runs)
        api = KubeApi(batch, core, "zenml")
        supervisor.create(api, supervisor.prepare(job(), facts("step"), RUN))
        for verb in ("get", "create", "patch"):
            cluster.faults.append(
                Fault(
                    code=500,
                    message=" ".join(TEXTS),
                    applies=lambda call, verb=verb: call.verb == verb,
                )
            )
        for _ in range(400):
            status, message = supervisor.check(
                batch_api=batch, core_api=core, namespace="zenml", job_name="a-step"
            )
            messages.append(str(message))
            if status is not kube_utils.JobStatus.RUNNING:
                break
            with cluster.store.lock:
                cluster.store.lock.wait(0.05)
        assert status is kube_utils.JobStatus.SUCCEEDED
        (successor,) = [j for j in cluster.list("jobs") if j["metadata"]["name"] == "a-step-m2"]
        environment = successor["spec"]["template"]["spec"]["containers"][0]["env"]
        assert {"name": "ZENML_STORE_API_TOKEN", "value": SECRET} in environment
        elsewhere = [
            json.dumps([one["metadata"] for one in cluster.list("jobs")]),
            json.dumps([one["metadata"] for one in cluster.list("pods")]),
            json.dumps(cluster.list("events")),
        ]
    # ZenML's own line about an API error quotes the answer; ours must not.
    logged = [one.getMessage() for one in caplog.records if one.name.startswith("zenml_ext")]
    assert "ZenML's server does not answer now" in " ".join(logged)
    assert "Kubernetes does not answer now" in " ".join(messages)
    assert step_runs.records
    for text in (*messages, *elsewhere, *step_runs.records, *logged):
        assert SECRET not in text


def test_a_record_that_the_server_refuses_is_told_without_its_secret(monkeypatch, caplog):
    class Client:
        def create_run_metadata(self, **_):
            raise RuntimeError(" ".join(TEXTS))

        def list_run_steps(self, **_):
            raise RuntimeError(" ".join(TEXTS))

    monkeypatch.setattr("zenml.client.Client", Client)
    caplog.set_level(logging.DEBUG, logger="zenml_ext")
    attempt = metadata.AttemptRecord(number=1, memory=None, peak=None, outcome="failed")
    metadata.record(UUID(RUN), [attempt])
    metadata.record_orchestrator(UUID(RUN), {"advice": "none"})
    config = SimpleNamespace(name="s")
    found = past_attempts(
        SimpleNamespace(name="s", pipeline="p", step=SimpleNamespace(config=config))
    )
    assert list(found) == []
    assert caplog.text.count("could not be recorded") == 2
    assert "no history of s" in caplog.text
    assert SECRET not in caplog.text
