"""Looks after the Jobs of a run's steps: the part that acts on what `decisions` says.

It stands behind ZenML's own functions in the orchestrator's process. While nothing is killed it
makes no call that ZenML would not make. All state that must outlive the process is in the Jobs.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from uuid import UUID

from kubernetes.client.rest import ApiException
from zenml.integrations.kubernetes import kube_utils

from mlops_ext.errors import MlopsExtError
from mlops_ext.memory import Caps, Cause, Features, MemoryPlan
from mlops_ext.redaction import redacted
from zenml_ext.kubernetes.client import (
    UNANSWERED,
    KubeApi,
    Recorder,
    describe_api_error,
    is_transient,
    retry_call,
)
from zenml_ext.kubernetes.objects.capacity import CapsReader
from zenml_ext.kubernetes.objects.diagnosis import (
    Termination,
    diagnose,
    may_be_the_nodes,
    with_node_events,
)
from zenml_ext.kubernetes.objects.job import (
    is_finished,
    latest_jobs,
    main_container,
    memory_of,
    next_job,
    prepare_step_job,
    run_id_of,
    superseding_patch,
)
from zenml_ext.kubernetes.objects.state import AttemptState, state_of
from zenml_ext.kubernetes.supervisor.decisions import (
    FailedJob,
    GiveUp,
    Relaunch,
    after_failure,
    after_refusal,
)
from zenml_ext.kubernetes.supervisor.scheduling import PendingPods, StepState
from zenml_ext.kubernetes.supervisor.step_runs import (
    ServerAwayError,
    ServerRefusesError,
    StepRun,
    StepRuns,
    step_run_of,
)
from zenml_ext.memory.attempts import KILLED
from zenml_ext.memory.policy import StepFacts, request_of

log = logging.getLogger(__name__)

JobStatus = kube_utils.JobStatus
Answer = tuple[JobStatus, str | None]
Manifest = Mapping[str, Any]

_GONE = 404
# While no pod of a step runs, ZenML is asked this often whether the run is stopped.
_STOP_PERIOD_S = 10.0
# Between relaunches of a step that is taken from its nodes again and again: what a kubelet still
# has in use of pods that end, or a node that comes and goes, takes minutes.
_LONGEST_PAUSE_S = 300.0
_STOPPING = (JobStatus.FAILED, "the run is being stopped")


class Supervisor:
    """One for each orchestrator process.

    Args:
        facts: returns what is configured for a step, by its name.
        step_runs: ZenML's side.
        clock: seconds.
    """

    def __init__(
        self,
        facts: Callable[[str], StepFacts],
        *,
        step_runs: StepRuns | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._facts, self._step_runs = facts, step_runs or StepRuns()
        self._pending, self._clock = PendingPods(self._step_runs, clock), clock
        self._check: Callable[..., Answer] = kube_utils.check_job_status  # before it is replaced
        self._steps: dict[str, StepState] = {}
        self._api: KubeApi | None = None
        self._caps = CapsReader(lambda kind: self._api.fetch(kind) if self._api else ())
        self._lock = threading.RLock()

    # -- a step starts ----------------------------------------------------------------------

    def prepare(self, manifest: Manifest, facts: StepFacts, run_id: str | None) -> dict[str, Any]:
        """The step's first Job, as `prepare_step_job` makes it, with the plan of its policy."""
        plan, features = None, Features()
        try:
            features = self._step_runs.features(facts, UUID(run_id) if run_id else None)
            plan = self._step_runs.plan(facts, features)
        except Exception as error:  # noqa: BLE001 - without a plan it gets what the user asked for
            log.warning("no memory plan for step %s: %s", facts.name, redacted(error))
            if asked := request_of(facts.settings, facts.step):
                plan = MemoryPlan(ladder=(asked,), reason="As asked for.")
        return prepare_step_job(
            manifest,
            plan=plan,
            in_place=facts.settings.in_place,
            features=features,
            version=facts.key.version,
        )

    def create(self, api: KubeApi, manifest: Manifest) -> Manifest:
        """Create a step's first Job; transient errors of the API are waited out."""
        return retry_call(lambda: api.create_job(manifest), refresh=api.refresh)

    # -- an orchestrator pod goes on where another died ---------------------------------------

    def take_over(self, api: KubeApi, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of a run's Jobs those that count; superseded ones are relabelled."""
        current, superseded = latest_jobs(jobs)
        for job in superseded:
            name = job["metadata"]["name"]
            log.info("Job %s was superseded before the last orchestrator ended.", name)
            api.patch_job(name, superseding_patch(job))
            if not is_finished(job):  # its pod may still come to run
                api.delete_job(name)
        return current

    # -- a step runs --------------------------------------------------------------------------

    def check(
        self, *, batch_api: Any, core_api: Any, namespace: str, job_name: str, **options: Any
    ) -> Answer:
        """ZenML's ``check_job_status``, of a step's Job and of those that superseded it."""
        with self._lock:
            step = self._steps.setdefault(job_name, StepState(job_name=job_name))
        api = KubeApi(batch_api, core_api, namespace, options.get("api_request_timeout"))
        self._api = api
        try:
            return self._poll(api, step, options)
        except ServerAwayError as error:
            step.say(job_name, str(error))
            return JobStatus.RUNNING, str(error)
        except ServerRefusesError as error:
            with contextlib.suppress(*UNANSWERED):
                if not is_finished(api.job(step.job_name)):  # a pod that waits must not start yet
                    api.delete_job(step.job_name)
            return JobStatus.FAILED, str(error)
        except UNANSWERED as error:
            if isinstance(error, ApiException) and error.status == _GONE:
                return self._gone(step)
            words = "does not answer now" if is_transient(error) else "refuses"
            if isinstance(error, ApiException) and is_transient(error):
                api.refresh()
            return JobStatus.RUNNING, f"Kubernetes {words}: {describe_api_error(error)}"

    def _poll(self, api: KubeApi, step: StepState, options: dict[str, Any]) -> Answer:
        self._relabel(api, step)
        batch = Recorder(api.batch, "read_namespaced_job")
        core = Recorder(api.core, "list_namespaced_pod")
        status, message = self._check(
            batch_api=batch,
            core_api=core,
            namespace=api.namespace,
            job_name=step.job_name,
            **options,
        )
        job = api.plain(batch.seen["read_namespaced_job"])
        state = state_of(job)
        if state is None:
            return status, message
        step.last_job = job
        listed = core.seen.get("list_namespaced_pod")
        pods: list[dict[str, Any]] | None = None if listed is None else api.plain(listed)["items"]
        if status is JobStatus.RUNNING:
            if stopped := self._stopped_meanwhile(api, step, job, state):
                return stopped
            refused = self._pending.poll(api, step, job, state, pods or [], self._caps)
            if refused and refused.for_good:
                failed = FailedJob(job=job, state=state, termination=diagnose(job, pods or []))
                return self._after_refusal(api, step, failed, refused.message)
            return JobStatus.RUNNING, refused.message if refused else message
        if status is JobStatus.FAILED and "Detected container in state" not in (message or ""):
            pods = api.pods_of(step.job_name) if pods is None else pods
            termination = self._diagnose(api, job, pods)
            return self._after(api, step, FailedJob(job=job, state=state, termination=termination))
        return status, message

    def _after_refusal(self, api: KubeApi, step: StepState, failed: FailedJob, why: str) -> Answer:
        """Try less for a Job whose pod can never run, where that may help; the pod must go."""
        facts, name = self._facts(failed.step_name), step.job_name
        failed = replace(failed, caps=self._caps_of(failed, facts))
        smaller = after_refusal(failed, why, in_place=facts.settings.in_place)
        answer = self._relaunch(api, step, failed, smaller) if smaller else None
        if answer is None or step.job_name != name:
            api.delete_job(name)
        return answer or (JobStatus.FAILED, why)

    @staticmethod
    def _diagnose(api: KubeApi, job: Manifest, pods: list[dict[str, Any]]) -> Termination:
        termination = diagnose(job, pods)
        node = termination.evidence.node
        if not node or not may_be_the_nodes(termination):
            return termination
        return with_node_events(termination, api.node_oom_events(node), time.time())

    # -- a step's Job has failed ----------------------------------------------------------------

    def _after(self, api: KubeApi, step: StepState, failed: FailedJob) -> Answer:
        facts = self._facts(failed.step_name)
        if failed.is_memory:
            failed = replace(failed, caps=self._caps_of(failed, facts))
        decision = after_failure(failed, facts.policy, in_place=facts.settings.in_place)
        if isinstance(decision, Relaunch):
            disruptions = decision.change.state.disruptions
            is_disrupted = disruptions > failed.state.disruptions
            held_s = step.held_s("failed", self._clock(), holds=is_disrupted)
            if is_disrupted and held_s < min(2.0 ** (disruptions - 1) - 1, _LONGEST_PAUSE_S):
                self._pending.send_heartbeat(step, failed.job)
                stopped = self._stopped_meanwhile(api, step, failed.job, failed.state)
                return stopped or (JobStatus.RUNNING, decision.reason)
            return self._relaunch(api, step, failed, decision)
        if decision.cause is Cause.NONE:  # the step ended well, whatever became of its pod
            log.warning("Step %s completed: %s", failed.step_name, decision.reason)
            return JobStatus.SUCCEEDED, None
        self._give_up(failed, decision)
        beside = "" if failed.is_memory else self._killed_beside(api, failed)
        return JobStatus.FAILED, f"{decision.reason}{beside}"

    def _caps_of(self, failed: FailedJob, facts: StepFacts) -> Caps:
        template = failed.job["spec"]["template"]["spec"]
        limit, request = memory_of(main_container(failed.job))
        return self._caps.caps(template, facts.max_memory, failed.run_id, request or limit)

    def _relaunch(
        self, api: KubeApi, step: StepState, failed: FailedJob, decision: Relaunch
    ) -> Answer:
        step_run = step_run_of(self._step_runs, failed.job)
        if self._step_runs.is_stopping(failed.run_id):
            return self._stopped(failed.job)
        if decision.resume and step_run is not None and step_run.is_over:
            over = f"{decision.reason} But ZenML has it as {step_run.status.value}."
            return JobStatus.FAILED, over
        can_resume = decision.resume and step_run is not None and step_run.can_be_resumed
        resumed = step_run if can_resume else None
        step_run_id = str(resumed.identifier) if resumed else None
        served = api.job(str(failed.job["metadata"]["name"]))
        job = next_job(served, replace(decision.change, step_run_id=step_run_id))
        name = str(job["metadata"]["name"])
        try:
            api.create_job(job)
        except ApiException as error:
            if is_transient(error):
                raise
            return JobStatus.FAILED, f"Job {name}: {describe_api_error(error)}"
        step.job_name = name
        step.times.clear()  # the next pod has waited for nothing yet
        step.step_run = resumed
        step.to_relabel.append(failed.job)
        self._announce(api, step, failed, decision, resumed)
        self._relabel(api, step)
        stopped = self._stopped_meanwhile(api, step, job, decision.change.state)
        return stopped or (JobStatus.RUNNING, None)

    def _stopped_meanwhile(
        self, api: KubeApi, step: StepState, job: Manifest, state: AttemptState
    ) -> Answer | None:
        """End a step whose next pod does not run yet, if the run is being stopped.

        A stop deletes the Jobs that it finds: one that is made just then is found here.
        """
        waits = state.number > 1 and not (job.get("status") or {}).get("ready")
        if not waits or not step.due("stop", _STOP_PERIOD_S, self._clock()):
            return None
        if not self._step_runs.is_stopping(run_id_of(job)):
            return None
        api.delete_job(step.job_name)
        return self._stopped(job)

    def close(self) -> None:
        """End the steps of which no pod runs, if the run is being stopped: ZenML asks no more."""
        with contextlib.suppress(MlopsExtError, *UNANSWERED):  # one that is away is asked once
            for step in self._steps.values():
                if step.last_job is None or self._api is None:
                    continue
                if not self._step_runs.is_stopping(run_id_of(step.last_job)):
                    return
                name = f"metadata.name={step.job_name}"
                found = self._api.readable("jobs", fieldSelector=name)
                if any(job["status"].get("ready") for job in found):
                    continue  # the step's own process hears of it
                if found and not is_finished(found[0]):
                    self._api.delete_job(step.job_name)
                self._stopped(step.last_job)

    def _stopped(self, job: Manifest) -> Answer:
        """Say on ZenML's server that a step is stopped of which no process is left to say so."""
        step_run = step_run_of(self._step_runs, job)
        if step_run is not None and step_run.can_be_resumed:
            self._step_runs.publish_stopped(step_run)
        return _STOPPING

    def _gone(self, step: StepState) -> Answer:
        """What to answer about a Job that somebody deleted; a stop of the run deletes Jobs."""
        job = step.last_job
        try:
            if job is not None and self._step_runs.is_stopping(run_id_of(job)):
                return self._stopped(job)
        except ServerAwayError as error:
            return JobStatus.RUNNING, str(error)
        except ServerRefusesError as error:
            return JobStatus.FAILED, str(error)
        return JobStatus.FAILED, f"Job {step.job_name} is gone: somebody deleted it"

    def _announce(
        self,
        api: KubeApi,
        step: StepState,
        failed: FailedJob,
        decision: Relaunch,
        resumed: StepRun | None,
    ) -> None:
        """Say in the log, on ZenML's server and in Kubernetes' events that a step runs again."""
        state, reason = decision.change.state, decision.reason
        log.warning("Step %s, attempt %d: %s", failed.step_name, state.number, reason)
        self._pending.send_heartbeat(step, failed.job)
        self._step_runs.record(failed.run_id, failed.step_name, resumed, state.attempts)
        event = "MemoryRetry" if decision.attempt.outcome == KILLED else "StepRetry"
        api.create_event(failed.job, event, f"{reason} Superseded by Job {step.job_name}.")

    def _give_up(self, failed: FailedJob, decision: GiveUp) -> None:
        """Record the attempts of a step that failed for memory, or was run again before."""
        attempts = [*failed.state.attempts, decision.attempt.dump()]
        if failed.is_memory or len(attempts) > 1:
            step_run = step_run_of(self._step_runs, failed.job)
            self._step_runs.record(failed.run_id, failed.step_name, step_run, attempts)

    def _killed_beside(self, api: KubeApi, failed: FailedJob) -> str:
        """Words about a pod that a step operator had run for the step, if memory ended it."""
        for pod in api.pods_of_step(failed.run_id, failed.step_name):
            end = diagnose({"spec": {"template": pod}}, [pod])
            if end.evidence.oom_killed and end.pod != failed.termination.pod:
                limit = f" at its limit of {end.memory.human}" if end.memory else ""
                return (
                    f" The step operator's pod {end.pod} was killed for memory{limit}: raise its"
                    " memory, or use a step operator of flavor kubernetes_oom."
                )
        return ""

    @staticmethod
    def _relabel(api: KubeApi, step: StepState) -> None:
        """Take superseded Jobs out of ZenML's look-ups; while that may yet work the step waits."""
        while step.to_relabel:
            name = step.to_relabel[0]["metadata"]["name"]
            try:
                api.patch_job(name, superseding_patch(step.to_relabel[0]))
            except ApiException as error:
                if is_transient(error):
                    raise
                log.warning("Job %s keeps its labels: %s", name, describe_api_error(error))
            step.to_relabel.pop(0)
