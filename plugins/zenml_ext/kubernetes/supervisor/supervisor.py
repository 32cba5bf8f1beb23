"""Looks after the Jobs of a run's steps: the part that acts on what `kubernetes_decisions` says.

It stands behind ZenML's own functions in the orchestrator's process. While nothing is killed it
makes no call that ZenML would not make. All state that must outlive the process is in the Jobs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from kubernetes.client.rest import ApiException
from urllib3.exceptions import HTTPError
from zenml.integrations.kubernetes import kube_utils

from mlops_ext.memory import Caps, Cause, Quantity
from mlops_ext.redaction import redacted
from zenml_ext.kubernetes.client import KubeApi, Recorder, error_words, is_passing, persistently
from zenml_ext.kubernetes.objects.capacity import CapsReader
from zenml_ext.kubernetes.objects.diagnosis import Ending, ending_of
from zenml_ext.kubernetes.objects.job import (
    follower_of,
    latest_jobs,
    main_container,
    memory_of,
    prepare_step_job,
    run_id_of,
    step_name_of,
    successor,
    superseding_patch,
)
from zenml_ext.kubernetes.objects.state import Track, track_of
from zenml_ext.kubernetes.supervisor.decisions import Failed, GiveUp, Relaunch, after_failure
from zenml_ext.kubernetes.supervisor.kubernetes_waits import Waits, row_of
from zenml_ext.kubernetes.supervisor.kubernetes_watch import Watch
from zenml_ext.kubernetes.supervisor.scheduling import oom_of_node
from zenml_ext.kubernetes.supervisor.step_runs import Book, StepFacts
from zenml_ext.memory.records import KILLED

__all__ = ["Supervisor"]

log = logging.getLogger(__name__)

JobStatus = kube_utils.JobStatus
Answer = tuple[JobStatus, str | None]
Manifest = Mapping[str, Any]

_FAILURES = frozenset({"Failed", "FailureTarget"})
_GONE = 404


class Supervisor:
    """One for each orchestrator process.

    Args:
        facts: returns what is configured for a step, by its name.
        book: ZenML's side.
        check: ZenML's own ``kube_utils.check_job_status``.
        clock: seconds.
    """

    def __init__(
        self,
        facts: Callable[[str], StepFacts],
        *,
        book: Book | None = None,
        check: Callable[..., Answer] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._facts, self._book = facts, book or Book()
        self._waits = Waits(self._book, clock)
        self._check: Callable[..., Answer] = check or kube_utils.check_job_status
        self._watches: dict[str, Watch] = {}
        self._probes: dict[str, str] = {}
        self._peaks: dict[str, Quantity] = {}
        self._caps: CapsReader | None = None
        self._any_unlimited = False
        self._lock = threading.RLock()

    # -- a step starts ----------------------------------------------------------------------

    def prepare(self, manifest: Manifest, facts: StepFacts, run_id: str | None) -> dict[str, Any]:
        """The step's first Job, as `prepare_step_job` makes it, with the plan of its policy."""
        from uuid import UUID

        plan = None
        try:
            plan = self._book.plan(facts, UUID(run_id) if run_id else None)
        except Exception as error:  # noqa: BLE001 - without a plan it runs as ZenML would run it
            log.warning("no memory plan for step %s: %s", facts.name, redacted(error))
        return prepare_step_job(
            manifest, plan=plan, family=facts.family, in_place=facts.settings.in_place
        )

    def create(self, api: KubeApi, manifest: Manifest) -> Manifest:
        """Create a step's first Job, through whatever weather the API has."""
        limit, _ = memory_of(main_container(manifest))
        self._any_unlimited = self._any_unlimited or limit is None
        return persistently(lambda: api.create_job(manifest), refresh=api.refresh)

    # -- an orchestrator pod goes on where another died ---------------------------------------

    def take_over(self, api: KubeApi, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Of a run's Jobs those that count; what others were left behind is tidied up.

        Failed step Jobs are given back as if they still ran: whether they have failed for good
        is decided by `check`, which ZenML asks about what runs.
        """
        current, followed = latest_jobs(jobs)
        for job, follower in followed:
            name = job["metadata"]["name"]
            log.info(
                "Job %s was followed by %s before the last orchestrator ended.", name, follower
            )
            api.patch_job(name, superseding_patch(job, follower))
        for job in current:
            track = track_of(job)
            if track is None:
                continue
            self._any_unlimited |= memory_of(main_container(job))[0] is None
            conditions = job["status"].get("conditions") or []
            if track.alone and not any(c["type"] == "Complete" for c in conditions):
                self._probes[track.family] = track.base
            job["status"]["conditions"] = [c for c in conditions if c["type"] not in _FAILURES]
        return current

    # -- a step runs --------------------------------------------------------------------------

    def check(
        self, *, batch_api: Any, core_api: Any, namespace: str, job_name: str, **options: Any
    ) -> Answer:
        """As ZenML's ``check_job_status``, of a step's Job and of those that followed it."""
        with self._lock:
            watch = self._watches.setdefault(job_name, Watch(current=job_name))
        api = KubeApi(batch_api, core_api, namespace, options.get("api_request_timeout"))
        try:
            return self._look(api, watch, options)
        except (ApiException, HTTPError, OSError) as error:
            if isinstance(error, ApiException) and error.status == _GONE:
                return JobStatus.FAILED, f"Job {watch.current} is gone: somebody deleted it"
            if not is_passing(error):
                return JobStatus.RUNNING, f"Kubernetes refuses: {error_words(error)}"
            if isinstance(error, ApiException):
                api.refresh()
            return JobStatus.RUNNING, f"Kubernetes does not answer now: {error_words(error)}"

    def _look(self, api: KubeApi, watch: Watch, options: dict[str, Any]) -> Answer:  # noqa: PLR0911
        self._tidy(api, watch)
        if watch.held is not None and watch.held_ending is not None:
            return self._after(api, watch, watch.held, watch.held_ending)
        batch = Recorder(api.batch, "read_namespaced_job")
        core = Recorder(api.core, "list_namespaced_pod")
        status, message = self._check(
            batch_api=batch,
            core_api=core,
            namespace=api.namespace,
            job_name=watch.current,
            **options,
        )
        job = api.plain(batch.seen["read_namespaced_job"])
        track = track_of(job)
        if track is None:
            return status, message
        if follower := follower_of(job):
            watch.current = follower
            return JobStatus.RUNNING, None
        pods = core.seen.get("list_namespaced_pod")
        found: list[dict[str, Any]] | None = api.plain(pods)["items"] if pods is not None else None
        if status is JobStatus.SUCCEEDED:
            self._learn(api, job, track)
            self._tidy(api, watch)
            return (JobStatus.RUNNING, None) if watch.superseded else (status, message)
        if status is JobStatus.FAILED and "Detected container in state" not in (message or ""):
            ending = ending_of(job, found if found is not None else api.pods_of(watch.current))
            return self._after(api, watch, job, oom_of_node(api, ending))
        if status is JobStatus.RUNNING:
            return self._running(api, watch, job, track, found or [], message)
        return status, message

    def _running(
        self,
        api: KubeApi,
        watch: Watch,
        job: Manifest,
        track: Track,
        pods: list[dict[str, Any]],
        message: str | None,
    ) -> Answer:
        minutes = self._facts(step_name_of(job)).settings.pending_timeout_min if pods else 0
        refused = self._waits.look(
            api, watch, job, track, pods, caps=self._caps_reader(api), timeout_s=60 * minutes
        )
        if refused is None:
            return JobStatus.RUNNING, message
        if refused.for_good:
            api.delete_job(watch.current)
            return JobStatus.FAILED, refused.message
        return JobStatus.RUNNING, refused.message

    # -- a step's Job has failed ----------------------------------------------------------------

    def _after(self, api: KubeApi, watch: Watch, job: Manifest, ending: Ending) -> Answer:
        track = track_of(job)
        assert track is not None
        name = step_name_of(job)
        facts = self._facts(name)
        evidence = ending.evidence
        is_memory = evidence.oom_killed or evidence.memory_error
        template = job["spec"]["template"]["spec"]
        failed = Failed(
            job=job,
            track=track,
            ending=ending,
            caps=self._caps_reader(api).caps(template, facts.max_memory) if is_memory else Caps(),
            family_peak=self._peaks.get(track.family),
            beside_unlimited=self._any_unlimited,
        )
        next_ = after_failure(failed, facts.policy, in_place=facts.settings.in_place)
        if isinstance(next_, GiveUp):
            self._give_up(job, name, next_, is_memory=is_memory)
            return JobStatus.FAILED, next_.reason
        if next_.change.track.alone and self._must_wait(watch, job, ending, track):
            self._waits.beat(watch)
            probe = self._probes[track.family]
            return JobStatus.RUNNING, f"waits for {probe} to show what this step needs"
        return self._relaunch(api, watch, job, name, next_)

    def _must_wait(self, watch: Watch, job: Manifest, ending: Ending, track: Track) -> bool:
        """Whether a step of the same code is finding out already what this one needs."""
        with self._lock:
            if self._probes.setdefault(track.family, track.base) == track.base:
                return False
            watch.held, watch.held_ending = job, ending
            return True

    def _relaunch(
        self, api: KubeApi, watch: Watch, job: Manifest, name: str, next_: Relaunch
    ) -> Answer:
        run_id = run_id_of(job)
        try:
            row = row_of(self._book, job)
            if self._book.is_stopping(run_id):
                return JobStatus.FAILED, "the run is being stopped"
        except Exception as error:  # noqa: BLE001 - any store may raise anything; asked again soon
            log.warning("ZenML does not answer now (%s); step %s waits.", redacted(error), name)
            return JobStatus.RUNNING, f"waits for ZenML's server: {redacted(error)}"
        if row is not None and row.is_over and next_.adopt:
            return JobStatus.FAILED, f"{next_.reason} But ZenML has it as {row.status.value}."
        from dataclasses import replace

        adopted = row if next_.adopt and row is not None and row.can_be_adopted else None
        change = replace(next_.change, step_run_id=str(adopted.identifier) if adopted else None)
        new = successor(job, change)
        try:
            api.create_job(new)
        except ApiException as error:
            if is_passing(error):
                raise
            return JobStatus.FAILED, f"Job {new['metadata']['name']}: {error_words(error)}"
        follower = new["metadata"]["name"]
        watch.held = watch.held_ending = None
        watch.current, watch.row = follower, adopted
        watch.superseded.append((job, follower))
        self._tidy(api, watch)
        log.warning("Step %s, attempt %d: %s", name, change.track.number, next_.reason)
        self._waits.beat(watch)
        self._book.record(run_id, name, adopted, change.track.attempts)
        api.create_event(
            job,
            "MemoryRetry" if next_.attempt.outcome == KILLED else "StepRetry",
            f"{next_.reason} Followed by Job {follower}.",
        )
        if self._stopped_meanwhile(run_id):
            api.delete_job(follower)
            return JobStatus.FAILED, "the run is being stopped"
        return JobStatus.RUNNING, None

    def _stopped_meanwhile(self, run_id: str) -> bool:
        """A stop that listed the run's Jobs before the new one was there has missed it."""
        try:
            return self._book.is_stopping(run_id)
        except Exception as error:  # noqa: BLE001 - asked again with the next look
            log.debug("is run %s stopping? %s", run_id, redacted(error))
            return False

    def _give_up(self, job: Manifest, name: str, next_: GiveUp, *, is_memory: bool) -> None:
        track = track_of(job)
        if track is None or (not is_memory and not track.attempts):
            return
        if next_.cause is Cause.NONE:
            return
        run_id = run_id_of(job)
        try:
            row = row_of(self._book, job)
            self._book.record(run_id, name, row, [*track.attempts, next_.attempt.dump()])
        except Exception as error:  # noqa: BLE001 - a record that is lost fails no step
            log.warning("the attempts of %s could not be recorded: %s", name, redacted(error))

    def _tidy(self, api: KubeApi, watch: Watch) -> None:
        """Take followed Jobs out of ZenML's look-ups; tried again until it has worked."""
        while watch.superseded:
            job, follower = watch.superseded[0]
            try:
                api.patch_job(job["metadata"]["name"], superseding_patch(job, follower))
            except (ApiException, HTTPError, OSError) as error:
                log.warning("Job %s keeps its label for now: %s", follower, error_words(error))
                return
            watch.superseded.pop(0)

    def _learn(self, api: KubeApi, job: Manifest, track: Track) -> None:
        """What a step on its own has needed lets the others of its code be scheduled."""
        if not track.alone or self._probes.get(track.family) != track.base:
            return
        ending = ending_of(job, api.pods_of(job["metadata"]["name"]))
        peak = ending.evidence.peak
        with self._lock:
            if peak is not None:
                self._peaks[track.family] = max(peak, self._peaks.get(track.family, peak))
            self._probes.pop(track.family, None)

    def _caps_reader(self, api: KubeApi) -> CapsReader:
        if self._caps is None:
            self._caps = CapsReader(api.fetch)
        return self._caps
