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
from zenml_ext.kubernetes.objects.diagnosis import lacks_memory
from zenml_ext.kubernetes.objects.job import run_id_of, step_name_of
from zenml_ext.kubernetes.objects.nodes import pod_memory
from zenml_ext.kubernetes.objects.state import AttemptState
from zenml_ext.kubernetes.supervisor.step_runs import StepRun, StepRuns, step_run_of

log = logging.getLogger(__name__)

Manifest = Mapping[str, Any]

_NODES_NAMED = 5
# An autoscaler looks every 10 s or so, and thinks for about this long.
_SCALING_S = 60.0
# Reasons of events which say that nobody makes room for a pod.
_OF_NO_USE = frozenset({"FailedScheduling", "NotTriggerScaleUp"})
# ZenML's own worker sends one every 15 s, and its thresholds are minutes.
_HEARTBEAT_S = 20.0
# A Job without a pod is asked why this often.
_REFUSAL_PERIOD_S = 10.0
# Kubernetes makes a Job's pod within a second; asking earlier would be a call for nothing.
_PODLESS_S = 2.0


@dataclass(slots=True, kw_only=True)
class StepState:
    """What the supervisor knows of one step, from poll to poll.

    Attributes:
        job_name: the Job that counts now.
        last_job: a Job of the step, as it was seen last; None before the first poll.
        to_relabel: superseded Jobs that still carry ZenML's labels.
        step_run: the step run to keep alive while no pod does; None until it is known.
        has_heartbeat: False once ZenML's server has said that the step needs none.
        last_message: what was logged last of a step that waits.
        times: when something was done last, or since when something holds.
    """

    job_name: str
    last_job: Manifest | None = None
    to_relabel: list[Manifest] = field(default_factory=list)
    step_run: StepRun | None = None
    has_heartbeat: bool = True
    last_message: str = ""
    times: dict[str, float] = field(default_factory=dict)

    def due(self, what: str, period_s: float, now: float) -> bool:
        """Whether it is time for *what* again; True at most once in a period."""
        is_due = now - self.times.get(what, float("-inf")) >= period_s
        if is_due:
            self.times[what] = now
        return is_due

    def held_s(self, what: str, now: float, *, holds: bool) -> float:
        """Seconds since *what* has held from poll to poll."""
        if not holds:
            self.times.pop(what, None)
        return now - self.times.setdefault(what, now) if holds else 0.0

    def say(self, step: str, message: str) -> None:
        """Log why *step* waits, once for each reason."""
        if message != self.last_message:
            log.warning("Step %s waits: %s", step, message)
            self.last_message = message


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
        caps: CapsReader,
    ) -> Refused | None:
        """Why an unfinished Job has no pod that runs; None if nothing is wrong.

        Args:
            api: where to ask.
            step: what is known of the step.
            job: its Job.
            state: the Job's state.
            pods: its pods, if ZenML has read them.
            caps: what the nodes can give.
        """
        status, now = job.get("status") or {}, self._clock()
        if state.number > 1 and not status.get("ready"):
            self.send_heartbeat(step, job)
        refused = self._lacks_memory(api, caps, pods, step)
        is_podless = is_without_pod(status)
        if step.held_s("no pod", now, holds=is_podless) >= _PODLESS_S:
            if step.due("refusal", _REFUSAL_PERIOD_S, now):
                refused = why_no_pod(api, step.job_name, caps.orchestrators(run_id_of(job)))
            elif step.last_message:
                refused = Refused(message=step.last_message, for_good=False)
        if refused and not refused.for_good:
            step.say(step_name_of(job), refused.message)
        return refused

    def send_heartbeat(self, step: StepState, job: Manifest) -> None:
        """Keep *job*'s step run alive: without heartbeats ZenML would stop a step that waits."""
        if not step.has_heartbeat:
            return
        try:
            step.step_run = step.step_run or step_run_of(self._step_runs, job)
            if step.step_run and step.due("heartbeat", _HEARTBEAT_S, self._clock()):
                step.has_heartbeat = self._step_runs.heartbeat(step.step_run)
        except Exception as error:  # noqa: BLE001 - the next one is due in seconds
            log.debug("no heartbeat for step %s: %s", step_name_of(job), redacted(error))

    def _lacks_memory(
        self, api: KubeApi, caps: CapsReader, pods: Sequence[Manifest], step: StepState
    ) -> Refused | None:
        """Why the scheduler finds no memory for one of *pods*, or None if none waits for that."""
        pod = next((one for one in pods if lacks_memory(one)), None)
        waited_s = step.held_s("no room", self._clock(), holds=pod is not None)
        if pod is None:
            return None
        if reason := never_fits(api, caps, pod, waited_s=waited_s):
            return Refused(message=reason, for_good=True)
        asks = f"it asks for {pod_memory(pod['spec']).human} of memory"
        unread = "" if caps.rooms(pod["spec"]) else ", if any node is as large: none may be listed"
        words = f"{asks}, which no node has free now; it starts when there is room{unread}"
        return Refused(message=words, for_good=False)


def never_fits(api: KubeApi, caps: CapsReader, pod: Manifest, *, waited_s: float) -> str | None:
    """Why no node will ever take *pod*, or None if one may.

    A node that an autoscaler may add counts. It is given time to look at the pod, and an event
    of anybody but the scheduler means that somebody is at work on it.
    """
    request, run_id = pod_memory(pod["spec"]), (pod["metadata"].get("labels") or {}).get("run_id")
    rooms = caps.rooms(pod["spec"], run_id or "")
    if not rooms or request <= rooms[0].room:
        return None
    reasons = {str(event.get("reason")) for event in api.events_of(pod["metadata"]["name"])}
    if reasons - _OF_NO_USE or ("NotTriggerScaleUp" not in reasons and waited_s < _SCALING_S):
        return None
    nodes = "; ".join(
        f"{room.name} has {room.room.human}"
        + (f" ({room.allocatable.human} less {room.taken.human} in use)" if room.taken else "")
        for room in rooms[:_NODES_NAMED]
    )
    return (
        f"no node can ever run it: it asks for {request.human}, and {nodes}."
        " Lower its memory, or add a larger node"
    )


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
