"""Pending steps: report why they wait (node, quota, another step) and send their heartbeats.

The API is asked only if something is wrong already; events that may not be read count as none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlops_ext.redaction import redacted
from zenml_ext.kubernetes.client import KubeApi
from zenml_ext.kubernetes.objects.capacity import CapsReader, Refused, read_refusal
from zenml_ext.kubernetes.objects.diagnosis import unschedulable
from zenml_ext.kubernetes.objects.job import run_id_of, step_name_of
from zenml_ext.kubernetes.objects.state import AttemptState
from zenml_ext.kubernetes.supervisor.step_runs import StepRun, StepRuns, step_run_of

log = logging.getLogger(__name__)

Manifest = Mapping[str, Any]

_NODES_NAMED = 5
_SCALING_S = 60.0
"""An autoscaler looks every 10 s or so, and thinks for about this long."""
_OF_NO_USE = frozenset({"FailedScheduling", "NotTriggerScaleUp"})
"""Reasons of events which say that nobody makes room for a pod."""
_PODLESS_S = 2.0
"""Kubernetes makes a Job's pod within a second; asking earlier would be a call for nothing."""


@dataclass(slots=True, kw_only=True)
class Every:
    """Lets something happen once in *period_s* seconds."""

    period_s: float
    last: float = float("-inf")

    def due(self, now: float) -> bool:
        """Whether it is time again; True at most once in a period."""
        if now - self.last < self.period_s:
            return False
        self.last = now
        return True


@dataclass(slots=True, kw_only=True)
class StepState:
    """What the supervisor knows of one step, from poll to poll.

    Attributes:
        job_name: the Job that counts now.
        last_job: a Job of the step, as it was seen last; None before the first poll.
        to_relabel: superseded Jobs that still carry ZenML's labels, with their successors' names.
        step_run: the step run to keep alive while no pod does; None until it is known.
        has_heartbeat: False once ZenML's server has said that the step needs none.
        heartbeat_timer: ZenML's own worker sends one every 15 s, and its thresholds are minutes.
        last_message: what was logged last of a pod that waits.
        podless_since: when its Job was first seen without a pod.
        unfit_since: since when no node has had enough free memory.
        refusal_timer: a Job without a pod is asked why this often.
        stop_timer: while no pod runs, ZenML is asked this often whether the run is stopped.
    """

    job_name: str
    last_job: Manifest | None = None
    to_relabel: list[tuple[Manifest, str]] = field(default_factory=list)
    step_run: StepRun | None = None
    has_heartbeat: bool = True
    heartbeat_timer: Every = field(default_factory=lambda: Every(period_s=20.0))
    last_message: str = ""
    podless_since: float | None = None
    unfit_since: float | None = None
    refusal_timer: Every = field(default_factory=lambda: Every(period_s=10.0))
    stop_timer: Every = field(default_factory=lambda: Every(period_s=10.0))


class PendingPods:
    """Says why steps wait, and keeps them alive meanwhile.

    Args:
        step_runs: ZenML's side.
        clock: seconds.
    """

    def __init__(self, step_runs: StepRuns, clock: Callable[[], float]) -> None:
        self._step_runs, self._clock = step_runs, clock

    def poll(
        self,
        api: KubeApi,
        step: StepState,
        job: Manifest,
        state: AttemptState,
        pods: Sequence[Manifest],
        *,
        caps: CapsReader,
        patience_s: float | None,
    ) -> Refused | None:
        """Why an unfinished Job has no pod that runs; None if nothing is wrong.

        Args:
            api: where to ask.
            step: what is known of the step.
            job: its Job.
            state: the Job's state.
            pods: its pods, if ZenML has read them.
            caps: what the nodes can give.
            patience_s: how long a pod may wait for memory; None: as long as it takes.
        """
        status = job.get("status") or {}
        if state.number > 1 and not status.get("ready"):
            self.send_heartbeat(step, job)
        refused = self._lacks_memory(api, caps, pods, step, patience_s)
        if is_without_pod(status):
            refused = self._refused(api, step, job, caps)
        else:
            step.podless_since = None
        if refused and not refused.for_good and refused.message != step.last_message:
            log.warning("Step %s waits: %s", step_name_of(job), refused.message)
            step.last_message = refused.message
        return refused

    def send_heartbeat(self, step: StepState, job: Manifest) -> None:
        """Keep *job*'s step run alive: without heartbeats ZenML would stop a step that waits."""
        if not step.has_heartbeat:
            return
        try:
            step.step_run = step.step_run or step_run_of(self._step_runs, job)
            if step.step_run is not None and step.heartbeat_timer.due(self._clock()):
                step.has_heartbeat = self._step_runs.heartbeat(step.step_run)
        except Exception as error:  # noqa: BLE001 - the next one is due in seconds
            log.debug("no heartbeat for step %s: %s", step_name_of(job), redacted(error))

    def _refused(
        self, api: KubeApi, step: StepState, job: Manifest, caps: CapsReader
    ) -> Refused | None:
        """Why a Job has no pod; not asked in the moment before it has one."""
        now = self._clock()
        step.podless_since = now if step.podless_since is None else step.podless_since
        if now - step.podless_since < _PODLESS_S:
            return None
        if step.refusal_timer.due(now):
            return why_no_pod(api, step.job_name, caps.orchestrators(run_id_of(job)))
        return Refused(message=step.last_message, for_good=False) if step.last_message else None

    def _lacks_memory(
        self,
        api: KubeApi,
        caps: CapsReader,
        pods: Sequence[Manifest],
        step: StepState,
        patience_s: float | None,
    ) -> Refused | None:
        """Why the scheduler finds no memory for one of *pods*, or None if none waits for that."""
        found = ((pod, why) for pod in pods if (why := unschedulable(pod)) and why.lacks_memory)
        pod, why = next(found, (None, None))
        if pod is None or why is None:
            step.unfit_since = None
            return None
        now = self._clock()
        step.unfit_since = now if step.unfit_since is None else step.unfit_since
        waited_s = now - step.unfit_since
        if reason := never_fits(api, caps, pod, waited_s=waited_s):
            return Refused(message=reason, for_good=True)
        if patience_s is not None and waited_s >= patience_s:
            words = (
                f"{why.asks}, which no node has had free for {waited_s / 60:.0f} min"
                f" (the scheduler: {why.message.split('. ')[0]}). Lower its memory, add a larger"
                " node, or raise pending_timeout_min"
            )
            return Refused(message=words, for_good=True)
        unread = "" if caps.rooms(pod["spec"]) else ", if any node is as large: none may be listed"
        words = f"{why.asks}, which no node has free now; it starts when there is room{unread}"
        return Refused(message=words, for_good=False)


def never_fits(api: KubeApi, caps: CapsReader, pod: Manifest, *, waited_s: float) -> str | None:
    """Why no node will ever take *pod*, or None if one may.

    A node that an autoscaler may add counts. It is given time to look at the pod, and an event
    of anybody but the scheduler means that somebody is at work on it.
    """
    why = unschedulable(pod)
    if why is None or not why.lacks_memory or why.request is None:
        return None
    rooms = caps.rooms(pod["spec"], _run_id(pod))
    if not rooms or why.request <= rooms[0].room:
        return None
    reasons = _reasons(api, pod)
    if reasons - _OF_NO_USE or ("NotTriggerScaleUp" not in reasons and waited_s < _SCALING_S):
        return None
    nodes = "; ".join(
        f"{room.name} has {room.room.human}"
        + (f" ({room.allocatable.human} less {room.taken.human} in use)" if room.taken else "")
        for room in rooms[:_NODES_NAMED]
    )
    return (
        f"no node can ever run it: it asks for {why.request.human}, and {nodes}."
        " Lower its memory, or add a larger node"
    )


def _run_id(pod: Manifest) -> str:
    return str((pod["metadata"].get("labels") or {}).get("run_id") or "")


def _reasons(api: KubeApi, pod: Manifest) -> set[str]:
    return {str(event.get("reason")) for event in api.events_of(pod["metadata"]["name"])}


def is_without_pod(status: Manifest) -> bool:
    """True if a started Job has no pod, active, terminating or not yet counted."""
    uncounted = status.get("uncountedTerminatedPods") or {}
    pods = ("active", "terminating", "succeeded")
    return bool(status.get("startTime")) and not any(
        (*(status.get(name) for name in pods), *uncounted.values())
    )


def why_no_pod(api: KubeApi, job: str, orchestrators: Sequence[Manifest]) -> Refused | None:
    """Why a Job has no pod: a LimitRange or a quota, in the user's words."""
    for event in reversed(api.events_of(job)):
        if event.get("reason") == "FailedCreate":
            return read_refusal(event.get("message") or "", orchestrators)
    return None
