"""What an orchestrator's process does with the supervisor, on the double; ZenML's server aside."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
from tests.doubles.kubernetes.cluster import Cluster
from zenml.enums import ExecutionStatus
from zenml.integrations.kubernetes import kube_utils

from kubernetes import client
from mlops_ext.memory import (
    Features,
    MemoryPlan,
    MemorySettings,
    Quantity,
    RequestPolicy,
    TaskKey,
)
from zenml_ext.kubernetes.client import KubeApi
from zenml_ext.kubernetes.supervisor.step_runs import StepRun
from zenml_ext.kubernetes.supervisor.supervisor import Supervisor

RUN = "11111111-1111-1111-1111-111111111111"
JobStatus = kube_utils.JobStatus
OPTIONS: dict[str, Any] = {"fail_on_container_waiting_reasons": ["ErrImagePull"]}
if "max_retries" in inspect.signature(kube_utils.check_job_status).parameters:
    OPTIONS["max_retries"] = 0


class FakeStepRuns:
    """ZenML's server, as far as the supervisor asks it."""

    def __init__(self) -> None:
        self.step_run_ = StepRun(identifier=uuid4(), status=ExecutionStatus.RUNNING)
        self.records: list[tuple[str, list]] = []
        self.heartbeats = 0
        self.stopped: list[StepRun] = []
        self.stopping = [False]
        self.limit: Quantity | None = Quantity.parse("200Mi")
        self.asked: Quantity | None = None  # by the user; as much as the plan's limit

    def features(self, facts: object, run_id: object) -> Features:
        return Features()

    def plan(self, facts: object, features: object) -> MemoryPlan:
        ladder = (self.limit,) if self.limit else ()
        return MemoryPlan(ladder=ladder, reason="test", request=self.asked or self.limit)

    def newest(self, run_id: object, step_name: str) -> StepRun:
        return self.step_run_

    def is_stopping(self, run_id: object) -> bool:
        return self.stopping.pop(0) if len(self.stopping) > 1 else self.stopping[0]

    def publish_stopped(self, step_run: StepRun) -> None:
        self.stopped.append(step_run)

    def heartbeat(self, step_run: StepRun) -> bool:
        self.heartbeats += 1
        return True

    def record(self, run_id: object, step_name: str, step_run: StepRun, attempts: list) -> None:
        self.records.append((step_name, list(attempts)))


def facts(name: str) -> SimpleNamespace:
    settings = SimpleNamespace(in_place=True, max_memory=None)
    policy = RequestPolicy(settings=MemorySettings())
    return SimpleNamespace(
        name=name,
        key=TaskKey(pipeline="p", step=name),
        policy=policy,
        max_memory=None,
        settings=settings,
    )


def step_job(
    name: str, step: str, ends: str, *, limit: str | None = "200Mi", backoff_limit: int = 0
) -> dict[str, Any]:
    """A step's Job as ZenML makes it; *ends* tells the double how its pods end."""
    resources = {"limits": {"memory": limit}} if limit else {"requests": {"memory": "400Mi"}}
    labels = {"run_id": RUN, "step_name": step}
    return {
        "metadata": {"name": name, "labels": labels, "annotations": {"zenml.io/step-name": step}},
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


class Orchestrator:
    """What a pod of the orchestrator does with the supervisor; make another one to restart."""

    def __init__(
        self,
        cluster: Cluster,
        step_runs: Any,
        clock: Callable[[], float] = time.monotonic,
        api_client: client.ApiClient | None = None,
    ) -> None:
        self.cluster, self.step_runs = cluster, step_runs
        self.batch, self.core = client.BatchV1Api(api_client), client.CoreV1Api(api_client)
        self.supervisor = Supervisor(facts, step_runs=step_runs, clock=clock)
        self.api = KubeApi(self.batch, self.core, "zenml")

    def start(
        self,
        ends: str,
        name: str = "a-step",
        step: str = "step",
        limit: str | None = "200Mi",
        backoff_limit: int = 0,
    ) -> str:
        manifest = step_job(name, step, ends, limit=limit, backoff_limit=backoff_limit)
        self.supervisor.create(self.api, self.supervisor.prepare(manifest, facts(step), RUN))
        return name

    def check(self, name: str) -> tuple[Any, str | None]:
        return self.supervisor.check(
            batch_api=self.batch, core_api=self.core, namespace="zenml", job_name=name, **OPTIONS
        )

    def until_over(self, name: str, looks: int = 400) -> tuple[Any, str | None]:
        for _ in range(looks):
            found = self.check(name)
            if found[0] is not JobStatus.RUNNING:
                return found
            version = self.cluster.store.version
            with self.cluster.store.lock:
                if self.cluster.store.version == version:
                    self.cluster.store.lock.wait(0.05)
        pytest.fail(f"never over: {found}")

    def take_over(self) -> dict[str, Any]:
        """What ZenML's entrypoint does when it goes on with a run: name of the Job by step."""
        jobs = self.supervisor.take_over(self.api, self.api.jobs(f"run_id={RUN}"))
        return {job["metadata"]["annotations"]["zenml.io/step-name"]: job for job in jobs}


def failed_job(cluster: Cluster, name: str) -> Any:
    return cluster.wait_for(
        lambda: [
            job
            for job in cluster.list("jobs")
            if job["metadata"]["name"] == name
            and any(c["type"] == "Failed" for c in job["status"].get("conditions", []))
        ]
    )


def names(cluster: Cluster, labels: str = f"run_id={RUN}") -> list[str]:
    return [job["metadata"]["name"] for job in cluster.list("jobs", labels)]


def limits(cluster: Cluster) -> list[str]:
    return [
        job["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        for job in cluster.list("jobs")
    ]
