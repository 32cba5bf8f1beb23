"""Pipelines of ZenML on the Kubernetes double for days of virtual time, among everything that goes wrong.

The supervisor, the policies and the growth in place are the product's own; the cluster is the
double, ZenML's server a few dictionaries, and a step a curve of memory over time.
"""

from __future__ import annotations

import contextlib
import functools
import json
import random
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from kubernetes import client
from tests.doubles.kubernetes import Cluster, Fault, clock
from tests.doubles.kubernetes.autoscaler import Autoscaler
from tests.doubles.kubernetes.direct import direct_client
from tests.doubles.kubernetes.jobs import event
from tests.doubles.kubernetes.orchestrator import OPTIONS, step_job
from tests.doubles.kubernetes.scheduler import CORDON, NOT_READY
from tests.doubles.kubernetes.store import ApiError, Object
from zenml.enums import ExecutionStatus
from zenml.integrations.kubernetes.kube_utils import JobStatus

from mlops_ext.codec import decode
from mlops_ext.memory import Features, InPlace, Quantity
from zenml_ext.kubernetes.client import UNANSWERED, KubeApi, retry_call
from zenml_ext.kubernetes.growth import Growth, Refusal, ResizeAnswer
from zenml_ext.kubernetes.objects.job import (
    ATTEMPTS_VARIABLE,
    IN_PLACE_VARIABLE,
    latest_jobs,
    superseding_patch,
)
from zenml_ext.kubernetes.resize import PodResizer, _pending, _refused
from zenml_ext.kubernetes.settings import KubernetesOomSettings
from zenml_ext.kubernetes.supervisor.step_runs import ServerAwayError, StepRun, StepRuns
from zenml_ext.kubernetes.supervisor.supervisor import Supervisor
from zenml_ext.kubernetes.watcher import Sampler
from zenml_ext.memory.attempts import KILLED, AttemptRecord
from zenml_ext.memory.cgroup import MemoryReading
from zenml_ext.memory.policy import StepFacts

MIB = 1 << 20
ORCHESTRATOR_MIB = 600
POLL_S = 5.0
SIDECAR = "64Mi"
SAYS_WITHIN_S = 120.0
"""A step that waits longer without a word does so in silence."""


@dataclass(kw_only=True)
class Step:
    """A step of a pipeline; sizes in MiB."""

    name: str
    curve: list[tuple[float, float]]
    memory: str | None
    after: tuple[str, ...] = ()
    code: int = 0
    in_place: bool = True
    fails: int = 0
    """Failures of its own before it succeeds."""
    retries: int = 0
    """The user's own retries."""
    init: tuple[str, ...] = ()
    """Sizes of the containers before it; each ends well after some seconds."""
    sidecar: str = ""
    """Ways in which a native sidecar ends; "": there is none."""

    @property
    def wanted(self) -> str:
        return "failed" if self.code or self.fails > self.retries else "completed"

    @property
    def peak(self) -> float:
        return max(size for _, size in self.curve)

    @property
    def seconds(self) -> float:
        return self.curve[-1][0]


@dataclass(kw_only=True)
class Run:
    """A run of a pipeline, as ZenML's server and its orchestrator have it."""

    pipeline: str
    steps: dict[str, Step]
    is_dynamic: bool = False
    is_stopped: bool = False
    run_id: str = field(default_factory=lambda: str(uuid4()))
    supervisor: Supervisor | None = None
    pod: str = ""
    jobs: dict[str, str] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    step_runs: dict[str, list] = field(default_factory=dict)
    attempts: dict[str, list] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    silent_since: dict[str, float] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        return len(self.ended) == len(self.steps)


class Server(StepRuns):
    """ZenML's server, with the product's own way to a plan."""

    def __init__(self, world: World) -> None:
        self.world, self.away = world, False

    def _there(self) -> None:
        if self.away:
            raise ServerAwayError("ZenML's server is away")

    def features(self, facts: StepFacts, run_id: UUID | None) -> Features:
        return Features()

    def past_attempts(self, facts: StepFacts) -> list[AttemptRecord]:
        """As the product's own: nothing where the server does not answer."""
        if self.away:
            return []
        found = self.world.history.get((facts.pipeline, facts.name), [])[-30:]
        return [one for one in found if one.completed or one.outcome == KILLED]

    def newest(self, run_id: str, step_name: str) -> StepRun | None:
        self._there()
        found = self.world.runs[run_id].step_runs.get(step_name)
        return StepRun(identifier=found[0], status=found[1]) if found else None

    def by_id(self, step_run_id: str) -> StepRun:
        self._there()
        (found,) = (
            one
            for run in self.world.runs.values()
            for one in run.step_runs.values()
            if str(one[0]) == step_run_id
        )
        return StepRun(identifier=found[0], status=found[1])

    def is_stopping(self, run_id: str) -> bool:
        self._there()
        return self.world.runs[run_id].is_stopped

    def publish_stopped(self, step_run: StepRun) -> None:
        self._there()
        for run in self.world.runs.values():
            for one in run.step_runs.values():
                if one[0] == step_run.identifier:
                    one[1] = ExecutionStatus.STOPPED

    def heartbeat(self, step_run: StepRun) -> bool:
        self._there()
        return True

    def record(self, run_id: str, step_name: str, step_run: Any, attempts: Any) -> None:
        if not self.away:  # the product's own logs what is lost, and goes on
            self.world.runs[run_id].attempts[step_name] = list(attempts)


class DirectResizer(PodResizer):
    """Asks the double, in this thread."""

    def __init__(self, world: World, pod: Object) -> None:
        super().__init__(url="", container="main")
        object.__setattr__(self, "_ask", functools.partial(world.resize, pod["metadata"]))

    def _patch(self, resources: Any) -> ResizeAnswer:
        return self._ask({"spec": {"containers": [{"name": "main", "resources": resources}]}})


class Beside:
    """What our entrypoint does in a step's pod: it watches, lets grow, and records at the end."""

    def __init__(self, world: World, pod: Object) -> None:
        labels = pod["metadata"]["labels"]
        self.world, self.run, self.pod = world, world.runs[labels["run_id"]], pod
        self.step, self.began = labels["step_name"], clock.monotonic()
        main = pod["spec"]["containers"][0]
        self.env = {one["name"]: one.get("value", "") for one in main.get("env", [])}
        rule = self.env.get(IN_PLACE_VARIABLE)
        limit = (main["resources"].get("limits") or {}).get("memory")
        self.reading = MemoryReading(
            limit=Quantity.parse(limit) if limit else None, used=0, oom_kills=0
        )
        growth = Growth(
            rule=decode(InPlace, json.loads(rule)) if rule else None,
            resizer=DirectResizer(world, pod),
        )
        self.sampler = Sampler(cgroup=self, growth=growth, began=self.began)  # type: ignore[arg-type]
        known = self.run.step_runs.setdefault(self.step, [uuid4(), ExecutionStatus.RUNNING])
        if known[1] is ExecutionStatus.RETRYING:  # by the user's own retries: a step run each
            known[:] = [uuid4(), ExecutionStatus.RUNNING]
            self.run.step_runs[self.step] = known
        if known[1] is ExecutionStatus.PROVISIONING:
            known[1] = ExecutionStatus.RUNNING
        assert self.run.is_stopped or known[1] is ExecutionStatus.RUNNING, (
            f"{self.step} runs though it is {known[1]}"
        )

    def read(self) -> MemoryReading:
        return self.reading

    def look(self, used: float, limit: float | None) -> None:
        size = int(used)
        self.reading = MemoryReading(limit=int(limit) if limit else None, used=size, oom_kills=0)
        self.sampler.poll(clock.monotonic())

    def end(self, code: int) -> str:
        seen = self.sampler.report
        if self.run.is_stopped:  # ZenML's handler of SIGTERM, or its heartbeat
            self.run.step_runs[self.step][1] = ExecutionStatus.STOPPED
        elif code != 137:
            ended = ExecutionStatus.FAILED if code else ExecutionStatus.COMPLETED
            step = self.run.steps[self.step]
            failures = self.run.failures[self.step] = self.run.failures.get(self.step, 0) + 1
            if code and failures <= step.retries and not self.run.is_dynamic:
                ended = ExecutionStatus.RETRYING
            self.run.step_runs[self.step][1] = ended
            own = AttemptRecord(
                number=1,
                memory=Quantity(seen.limit) if seen.limit else None,
                peak=Quantity(seen.peak),
                outcome="failed" if code else "completed",
                runtime_s=clock.monotonic() - self.began,
                curve=seen.curve,
                resizes_s=seen.resizes_s,
            )
            earlier = json.loads(self.env.get(ATTEMPTS_VARIABLE) or "[]")
            self.run.attempts[self.step] = [*earlier, own.dump()]
        return seen.text().decode()


class World:
    """A cluster, and the pipelines that run on it."""

    def __init__(self, cluster: Cluster, *, may_resize: bool = True) -> None:
        self.cluster, self.may_resize = cluster, may_resize
        self.runs: dict[str, Run] = {}
        self.history: dict[tuple[str, str], list[AttemptRecord]] = {}
        self.server = Server(self)
        self.client = direct_client(cluster)
        self.api = KubeApi(client.BatchV1Api(self.client), client.CoreV1Api(self.client), "zenml")
        cluster.kubelet.pretender.companion = self._companion
        self.policy: str | None = None
        self._facts: dict[tuple[str, str], StepFacts] = {}

    def _companion(self, pod: Object) -> Beside | None:
        return Beside(self, pod) if "step_name" in pod["metadata"]["labels"] else None

    def resize(self, meta: Object, body: Object) -> ResizeAnswer:
        """What the resize subresource answers to a pod."""
        if self.cluster.faults:
            return ResizeAnswer(refusal=Refusal.FOR_NOW, message="503")
        if not self.may_resize:
            words = {"message": 'User "x" cannot patch resource "pods/resize"'}
            return _refused(403, json.dumps(words))
        try:
            pod = self.cluster.store.get("pods", meta["namespace"], meta["name"])
            pod = self.cluster.kubelet.resizes.ask(pod, body)
        except ApiError as error:
            return _refused(error.code, json.dumps(error.status()))
        return ResizeAnswer(refusal=None, pending=_pending(pod))

    def facts(self, run: Run, name: str) -> StepFacts:
        """What is configured for a step: made once, since it reads settings."""
        key = (run.pipeline, name)
        if key not in self._facts:
            step = run.steps[name]
            config = SimpleNamespace(
                caching_parameters={"code_hash": "1"},
                resource_settings=SimpleNamespace(memory=None),
                name=name,
            )
            settings = KubernetesOomSettings(
                memory=step.memory, in_place=step.in_place, memory_policy=self.policy
            )
            spec = SimpleNamespace(invocation_id=name, inputs={})
            found: Any = SimpleNamespace(spec=spec, config=config)
            self._facts[key] = StepFacts(
                name=name, pipeline=run.pipeline, step=found, settings=settings
            )
        return self._facts[key]

    # -- runs -----------------------------------------------------------------------------------

    def submit(self, run: Run) -> None:
        """What ZenML's client does: the Job of the orchestrator."""
        self.runs[run.run_id] = run
        size = {"memory": f"{ORCHESTRATOR_MIB}Mi"}
        uses = {"curve": [[1e9, 250 * MIB]]}
        container = {"name": "main", "image": "i", "resources": {"limits": size, "requests": size}}
        template = {
            "metadata": {
                "labels": {"run_id": run.run_id},
                "annotations": {"double/uses": json.dumps(uses)},
            },
            "spec": {"restartPolicy": "Never", "containers": [container]},
        }
        meta = {"name": f"orchestrator-{run.run_id[:8]}", "labels": {"run_id": run.run_id}}
        self.cluster.resources._create(
            "jobs",
            "zenml",
            {
                "apiVersion": "batch/v1",
                "kind": "Job",
                "metadata": meta,
                "spec": {"backoffLimit": 1000, "template": template},
            },
        )

    def poll(self, run: Run) -> None:
        """What the orchestrator's pod does every few seconds, if it runs."""
        pods = self.cluster.list("pods", f"run_id={run.run_id},!step_name")
        pod = next((p for p in pods if p["status"]["phase"] == "Running"), None)
        if pod is None or pod["metadata"].get("deletionTimestamp") or run.is_over:
            return
        if run.supervisor is None or run.pod != pod["metadata"]["uid"]:
            if self.cluster.faults or self.server.away:
                return  # ZenML's own entrypoint fails on that, and its pod is started again
            run.pod = pod["metadata"]["uid"]
            run.supervisor = Supervisor(
                functools.partial(self.facts, run), step_runs=self.server, clock=clock.monotonic
            )
            jobs = self.api.jobs(f"run_id={run.run_id}")
            current = run.supervisor.take_over(self.api, jobs)
            run.jobs = {
                job["metadata"]["annotations"]["zenml.io/step-name"]: job["metadata"]["name"]
                for job in current
                if "step_name" in job["metadata"]["labels"]
            }
        for step in run.steps.values():
            self._advance(run, step)
        if run.is_stopped:  # ZenML's loop ends within a second of a stop
            run.supervisor.close()
            run.ended = {name: run.ended.get(name, "stopped") for name in run.steps}
        elif run.is_over:
            self._tidy(run)

    def stop(self, run: Run) -> None:
        """What ZenML's client does: it marks the run, and deletes the Jobs it finds."""
        run.is_stopped = True
        for job in self.api.jobs(f"run_id={run.run_id},step_name"):
            if not job["status"].get("conditions"):
                self.api.delete_job(job["metadata"]["name"])

    def _advance(self, run: Run, step: Step) -> None:
        name = step.name
        if name in run.ended:
            return
        if any(run.ended.get(one, "completed") != "completed" for one in step.after):
            run.ended[name] = "skipped"
        elif name not in run.jobs:
            if all(one in run.ended for one in step.after):
                self._start(run, step)
        else:
            status, message = self._ask(run, name)
            self._listen(run, name, message)
            if status in {JobStatus.SUCCEEDED, JobStatus.FAILED}:
                run.ended[name] = "completed" if status is JobStatus.SUCCEEDED else "failed"
                run.messages[name] = message or ""
                key = (run.pipeline, name)
                records = [AttemptRecord.load(one) for one in run.attempts.get(name, [])]
                self.history.setdefault(key, []).extend(records)

    def _ask(self, run: Run, name: str) -> tuple[JobStatus, str | None]:
        assert run.supervisor
        job = run.jobs[name]
        if run.is_dynamic:  # as `SupervisedSteps` finds it, each time anew
            try:
                jobs = self.api.jobs(f"step_run_id={run.step_runs[name][0]}")
            except UNANSWERED as error:
                return JobStatus.RUNNING, repr(error)
            current, superseded = latest_jobs(jobs)
            job = current[0]["metadata"]["name"]
            for one in superseded:
                with contextlib.suppress(*UNANSWERED):
                    self.api.patch_job(one["metadata"]["name"], superseding_patch(one))
        return run.supervisor.check(
            batch_api=self.api.batch,
            core_api=self.api.core,
            namespace="zenml",
            job_name=job,
            **OPTIONS,
        )

    def _start(self, run: Run, step: Step) -> None:
        job = f"{run.run_id[:8]}-{step.name}"
        retries = 0 if run.is_dynamic else step.retries
        manifest = step_job(job, step.name, "", limit=None, backoff_limit=retries)
        labels = {"run_id": run.run_id}
        if run.is_dynamic:
            run.step_runs[step.name] = [uuid4(), ExecutionStatus.PROVISIONING]
            labels["step_run_id"] = str(run.step_runs[step.name][0])
        for meta in (manifest["metadata"], manifest["spec"]["template"]["metadata"]):
            meta["labels"] |= labels
        uses = {"curve": [[s, size * MIB] for s, size in step.curve], "code": step.code}
        uses["fails"] = step.fails
        template = manifest["spec"]["template"]
        notes = {"double/uses": json.dumps(uses)}
        before = [
            {"name": f"init-{n}", "image": "i", "resources": {"limits": {"memory": size}}}
            for n, size in enumerate(step.init)
        ]
        notes |= {f"double/ends-{one['name']}": "0 Completed 5" for one in before}
        if step.sidecar:
            size = {"limits": {"memory": SIDECAR}}
            proxy = {"name": "proxy", "image": "i", "restartPolicy": "Always", "resources": size}
            before.insert(0, proxy)
            notes["double/ends-proxy"] = step.sidecar
        template["metadata"]["annotations"] = notes
        if before:
            template["spec"]["initContainers"] = before
        if step.memory:
            size = {"memory": step.memory}
            template["spec"]["containers"][0]["resources"] = {"limits": size, "requests": size}
        assert run.supervisor
        facts = self.facts(run, step.name)
        prepared = run.supervisor.prepare(manifest, facts, run.run_id)
        run.jobs[step.name] = job
        run.supervisor.create(self.api, prepared)

    def _listen(self, run: Run, name: str, message: str | None) -> None:
        """No step waits without saying so, and none runs twice at once."""
        label = f"run_id={run.run_id},step_name={name}"
        running = [
            p
            for p in self.cluster.list("pods", label)
            if p["status"]["phase"] == "Running" and not p["metadata"].get("deletionTimestamp")
        ]
        assert len(running) <= 1, f"{name} runs {len(running)} times at once"
        if running or message:
            run.silent_since.pop(name, None)
            return
        since = run.silent_since.setdefault(name, clock.monotonic())
        silent = clock.monotonic() - since
        assert silent < SAYS_WITHIN_S, f"{run.jobs[name]} has waited {silent:.0f} s without a word"

    def _tidy(self, run: Run) -> None:
        for job in self.cluster.list("jobs"):
            labels = job["metadata"]["labels"]
            owned = {labels.get("run_id"), labels.get("mlops-ext.io/superseded-run-id")}
            if run.run_id in owned:
                self.cluster.resources._delete("jobs", "zenml", job["metadata"]["name"], {})

    def pass_time(self, seconds: float) -> None:
        """Let orchestrators poll while *seconds* pass; sleep through what nobody is awake in."""
        end = clock.monotonic() + seconds
        while clock.monotonic() < end:
            alive = [run for run in self.runs.values() if not run.is_over]
            if not alive and not self.cluster.list("pods"):
                self.cluster.pass_time(end - clock.monotonic(), step=600.0)
                return
            self.cluster.pass_time(min(POLL_S, end - clock.monotonic()))
            for run in alive:
                self.poll(run)

    def sleep(self, seconds: float) -> None:
        """What an orchestrator that waits for the API server does: the cluster goes on."""
        self.cluster.pass_time(seconds)


def patient(world: World, monkeypatch: Any) -> None:
    """Have the supervisor wait in the world's time."""
    waits = functools.partial(retry_call, sleep=world.sleep)
    monkeypatch.setattr("zenml_ext.kubernetes.supervisor.supervisor.retry_call", waits)
    monkeypatch.setattr("zenml_ext.memory.history.past_attempts", world.server.past_attempts)
    # The client makes a configuration for each object that it reads, which takes most of the time.
    values = dict(vars(client.Configuration()))
    monkeypatch.setattr(
        "kubernetes.client.configuration.Configuration.__init__",
        lambda self, **more: vars(self).update(values, **more),
    )


# -- what happens in a week -----------------------------------------------------------------------

GPU = {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"}


@dataclass(kw_only=True)
class Terms:
    """What a cluster allows: the largest step that can run, in MiB."""

    nodes: dict[str, Any]
    largest: float
    autoscaler: str | None
    quota: str | None
    range_max: str | None


def terms(chance: random.Random) -> Terms:
    sizes = [chance.choice([4, 6, 8, 16]) for _ in range(chance.randint(1, 3))]
    nodes: dict[str, Any] = {}
    for number, size in enumerate(sizes):  # two of each: one may go for good
        for twin in "ab":
            nodes[f"node-{number}{twin}"] = {"memory": f"{size}Gi"}
    nodes["gpu"] = {"memory": "64Gi", "taints": (GPU,)}
    nodes["other-zone"] = {"memory": "128Gi", "taints": (GPU,)}
    autoscaler = chance.choice([None, "cluster-autoscaler", "karpenter"])
    if autoscaler:
        sizes.append(24)
    largest = max(sizes) * 1024.0 - ORCHESTRATOR_MIB
    quota = chance.choice([None, None, 12, 20])
    if quota:
        largest = min(largest, quota * 1024.0 - 4 * ORCHESTRATOR_MIB)
    range_max = chance.choice([None, None, None, 6])
    if range_max:
        largest = min(largest, range_max * 1024.0)
    return Terms(
        nodes=nodes,
        largest=largest,
        autoscaler=autoscaler,
        quota=f"{quota}Gi" if quota else None,
        range_max=f"{range_max}Gi" if range_max else None,
    )


def establish(world: World, found: Terms) -> None:
    """Quota, LimitRange and autoscaler of the namespace and the cluster."""
    if found.quota:
        hard = {"requests.memory": found.quota}
        body = {"kind": "ResourceQuota", "metadata": {"name": "team"}, "spec": {"hard": hard}}
        world.cluster.store.create("resourcequotas", "zenml", body)
    if found.range_max:
        item = {"type": "Container", "max": {"memory": found.range_max}}
        body = {"kind": "LimitRange", "metadata": {"name": "l"}, "spec": {"limits": [item]}}
        world.cluster.store.create("limitranges", "zenml", body)
    if found.autoscaler:
        scaler = Autoscaler(world.cluster, memory="24Gi", kind=found.autoscaler)
        world.cluster.beside.append(scaler.tick)
    world.cluster.kubelet.pretender.on_exhaustion = functools.partial(system_oom, world)


def system_oom(world: World, node: str) -> None:
    obj = {"kind": "Node", "metadata": {"name": node, "namespace": "default", "uid": node}}
    text = f"System OOM encountered, victim process: python, pid: {clock.monotonic():.0f}"
    event(world.cluster.store, obj, "SystemOOM", text)


def pipeline(chance: random.Random, number: int, most: float) -> dict[str, Step]:
    """A few steps, in a chain or side by side; each fits the cluster."""
    steps: dict[str, Step] = {}
    for index in range(chance.randint(1, 4)):
        name = f"step-{number}-{index}"
        peak = round(chance.uniform(100, min(most, chance.choice([600, 2000, most]))))
        seconds = round(chance.choice([20, 60, 200, 600]) * chance.uniform(0.5, 1.5))
        kind = chance.choice(["ramp", "plateau", "spike", "saw"])
        start = min(peak, 80.0)
        shapes: dict[str, list[tuple[float, float]]] = {
            "ramp": [(1, start), (seconds, peak)],
            "plateau": [(1, start), (0.2 * seconds + 1, peak), (seconds + 2, peak)],
            "spike": [
                (1, start),
                (0.9 * seconds, start),
                (0.9 * seconds + 1, peak),
                (seconds + 3, start),
            ],
            "saw": [
                (1, start),
                (0.3 * seconds, 0.7 * peak),
                (0.5 * seconds, start),
                (seconds + 2, peak),
            ],
        }
        asked = peak * chance.choice([0.15, 0.4, 0.7, 0.95, 1.2, 2.0])
        memory = None if chance.random() < 0.2 else f"{max(32, min(round(asked), int(most)))}Mi"
        after = tuple(chance.sample(sorted(steps), k=min(len(steps), chance.randint(0, 2))))
        steps[name] = Step(
            name=name,
            curve=shapes[kind],
            memory=memory,
            after=after,
            code=1 if chance.random() < 0.05 else 0,
            in_place=chance.random() < 0.8,
        )
        if chance.random() < 0.3:
            steps[name].init = tuple(chance.choices(["32Mi", "200Mi"], k=chance.randint(1, 2)))
        if chance.random() < 0.3:  # one that runs well, and one that is killed and starts again
            steps[name].sidecar = chance.choice(["0 Completed 1000000", "137 OOMKilled 15"])
        if not steps[name].code and chance.random() < 0.3:
            steps[name].fails = chance.randint(0, 2)
            steps[name].retries = chance.randint(steps[name].fails, 3)
    return steps


class Trouble:
    """What goes wrong in a cluster; each is over after a while."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world, self.cluster, self.chance = world, world.cluster, chance
        self.until: list[tuple[float, Any]] = []
        self.told: list[str] = []

    def strike(self) -> None:
        kind = self.chance.choice(
            [
                "cordon",
                "drain",
                "not_ready",
                "gone",
                "evict",
                "api",
                "server",
                "orchestrator",
                "slow",
                "infeasible",
                "ghost",
                "preempt",
                "stop",
            ]
        )
        self.told.append(f"{clock.monotonic():.0f} {kind}")
        getattr(self, kind)()

    def heal(self, *, all_of_it: bool = False) -> None:
        for due, undo in list(self.until):
            if all_of_it or clock.monotonic() >= due:
                self.until.remove((due, undo))
                undo()

    def _for(self, low: float, high: float, undo: Any) -> None:
        self.until.append((clock.monotonic() + self.chance.uniform(low, high), undo))

    def _node(self) -> str:
        return self.chance.choice(sorted(self.cluster.kubelet.nodes))

    def _untaint(self, node: str, taint: Object) -> None:
        if node in self.cluster.kubelet.nodes:
            self.cluster.taint(node, taint, on=False)

    def cordon(self) -> None:
        node = self._node()
        self.cluster.taint(node, CORDON)
        self._for(60, 7200, functools.partial(self._untaint, node, CORDON))

    def drain(self) -> None:
        node = self._node()
        self.cluster.drain(node)
        self._for(60, 1800, functools.partial(self._untaint, node, CORDON))

    def not_ready(self) -> None:
        node = self._node()
        self.cluster.taint(node, NOT_READY)
        self._for(30, 600, functools.partial(self._untaint, node, NOT_READY))

    def gone(self) -> None:
        """A node goes for good, and its twin stays; a new one comes some time later."""
        twins = [n for n in self.cluster.kubelet.nodes if n[-1] in "ab" and n.startswith("node-")]
        twins = [n for n in twins if n[:-1] + ("a" if n[-1] == "b" else "b") in twins]
        if twins:
            node = self.chance.choice(sorted(twins))
            memory = self.cluster.kubelet.nodes[node].allocatable["memory"]
            self.cluster.remove_node(node)
            self._for(300, 7200, functools.partial(self.cluster.add_node, node, memory))

    def _some_pod(self) -> Object | None:
        pods = [p for p in self.cluster.list("pods") if p["status"]["phase"] == "Running"]
        return self.chance.choice(pods) if pods else None

    def evict(self) -> None:
        if pod := self._some_pod():
            words = (
                "The node was low on resource: memory. Threshold quantity: 100Mi, available: 52Mi."
                " Container main was using 700Mi, request is 400Mi, has larger consumption of memory. "
            )
            self.cluster.evict(pod, words)

    def preempt(self) -> None:
        if pod := self._some_pod():
            self.cluster.resources.evict("zenml", pod["metadata"]["name"], {})

    def orchestrator(self) -> None:
        pods = self.cluster.list("pods", "run_id,!step_name")
        live = [p for p in pods if p["status"]["phase"] == "Running"]
        if live:
            name = self.chance.choice(live)["metadata"]["name"]
            self.cluster.resources._delete("pods", "zenml", name, {"gracePeriodSeconds": 0})

    def stop(self) -> None:
        """A user stops a run whose orchestrator is there to hear of it."""
        if self.world.server.away or self.cluster.faults:
            return
        heard = {
            p["metadata"]["labels"]["run_id"]
            for p in self.cluster.list("pods", "run_id,!step_name")
            if p["status"]["phase"] == "Running"
        }
        runs = [
            r
            for r in self.world.runs.values()
            if r.run_id in heard and r.jobs and not r.is_over and r.supervisor and not r.is_dynamic
        ]
        if runs:
            self.world.stop(self.chance.choice(runs))

    def api(self) -> None:
        code = self.chance.choice([401, 409, 429, 500, 503])
        self.cluster.faults.append(Fault(code=code, times=10**9))
        self._for(20, 240, self.cluster.faults.clear)

    def server(self) -> None:
        self.world.server.away = True
        self._for(20, 500, functools.partial(setattr, self.world.server, "away", False))

    def slow(self) -> None:
        most = self.chance.choice([0, 2, 15, 60])
        self.cluster.kubelet.resizes.latency = lambda node: self.chance.uniform(0, most)

    def infeasible(self) -> None:
        node = self._node()
        self.cluster.kubelet.resizes.infeasible.add(node)
        self._for(
            600, 36000, functools.partial(self.cluster.kubelet.resizes.infeasible.discard, node)
        )

    def ghost(self) -> None:
        node = self._node()
        self.cluster.kubelet.ghosts[node] = self.cluster.kubelet.nodes[node].allocatable["memory"]
        self._for(5, 900, functools.partial(self.cluster.kubelet.ghosts.pop, node, None))


def simulate(seed: int, monkeypatch: Any, *, runs: int, span_s: float) -> World:
    """*runs* pipelines in *span_s* seconds; afterwards everything is healed, and has hours to end."""
    chance = random.Random(seed)
    found = terms(chance)
    with Cluster(found.nodes, real=False, tls=False, stepped=True, backoff_s=10) as cluster:
        world = World(cluster, may_resize=chance.random() < 0.8)
        patient(world, monkeypatch)
        establish(world, found)
        trouble = Trouble(world, chance)
        pipelines = [pipeline(chance, n, 0.95 * found.largest) for n in range(max(1, runs // 4))]
        starts = sorted(chance.uniform(0, span_s) for _ in range(runs))
        begin = clock.monotonic()
        strikes = sorted(at + chance.expovariate(1 / 300) for at in starts for _ in range(3))
        moments = sorted([(at, True) for at in starts] + [(at, False) for at in strikes])
        try:
            for at, is_start in moments:
                while begin + at > clock.monotonic():
                    world.pass_time(min(30.0, begin + at - clock.monotonic()))
                    trouble.heal()
                if is_start:
                    number = chance.randrange(len(pipelines))
                    steps, is_dynamic = pipelines[number], number % 3 == 1
                    if is_dynamic:  # its own runner counts the user's retries
                        steps = {k: replace(v, fails=0, retries=0) for k, v in steps.items()}
                    world.submit(Run(pipeline=f"p{number}", steps=steps, is_dynamic=is_dynamic))
                else:
                    trouble.strike()
            trouble.heal(all_of_it=True)
            for _ in range(24 * 60):
                if all(run.is_over for run in world.runs.values()):
                    break
                world.pass_time(60)
            judge(world)
        except AssertionError as error:
            raise AssertionError(
                f"seed {seed}, {found}\n{error}\n" + "\n".join(trouble.told)
            ) from error
        return world


def judge(world: World) -> None:
    """No step fails that fits, and none is left."""
    wrong = []
    for run in world.runs.values():
        left = {name for name, (_, status) in run.step_runs.items() if not status.is_finished}
        if run.is_stopped and left:
            wrong.append(f"{run.run_id[:8]} was stopped, and still there are {left}")
        for name, step in run.steps.items():
            wanted = step.wanted
            got = run.ended.get(name, "not over")
            if got not in {wanted, "skipped"} and not run.is_stopped:
                wrong.append(
                    f"{run.run_id[:8]} {name} is {got}, not {wanted}: needs {step.peak:.0f}Mi, asked"
                    f" {step.memory}; {run.messages.get(name)}\n   {run.attempts.get(name)}"
                )
    assert not wrong, "\n".join(wrong)
