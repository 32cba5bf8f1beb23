"""Why a step's pod is not there, not scheduled, or was killed without a reason: what events tell.

Asked only where something is wrong already; events that may not be read are as good as none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from zenml_ext.kubernetes.client import KubeApi
from zenml_ext.kubernetes.objects.capacity import CapsReader, Refused, read_refusal, stays
from zenml_ext.kubernetes.objects.diagnosis import Ending, unschedulable
from zenml_ext.kubernetes.supervisor.kubernetes_watch import Watch

__all__ = ["is_without_pod", "never_fits", "no_room", "oom_of_node", "why_no_pod"]

Manifest = Mapping[str, Any]

_SIGKILLED = 137
_SLACK_S = 60.0
"""Clocks of nodes differ, and events are written late."""
_NODES_NAMED = 5
_SCALING_S = 60.0
"""An autoscaler thinks for about this long; a thousand steps that wait ask no oftener."""


def never_fits(api: KubeApi, caps: CapsReader, pod: Manifest) -> str | None:
    """Why no node will ever take *pod*, or None where one may.

    Nodes that an autoscaler is about to add count: its event on the pod says so.
    """
    found = unschedulable(pod)
    if found is None or not found.lacks_memory or found.request is None:
        return None
    rooms = caps.rooms(pod["spec"])
    if not rooms or found.request <= rooms[0].room:
        return None
    events = api.events_of(pod["metadata"]["name"])
    if any(event.get("reason") == "TriggeredScaleUp" for event in events):
        return None
    nodes = "; ".join(
        f"{room.name} has {room.room.human}"
        + (f" ({room.allocatable.human} less {room.taken.human} in use)" if room.taken else "")
        for room in rooms[:_NODES_NAMED]
    )
    return (
        f"no node can ever run it: it asks for {found.request.human}, and {nodes}."
        " Lower its memory, or add a larger node"
    )


def no_room(
    api: KubeApi,
    caps: CapsReader,
    pods: Sequence[Manifest],
    watch: Watch,
    *,
    now: float,
    wait_s: float,
) -> Refused | None:
    """Why the scheduler finds no memory for one of a Job's *pods*; None where none waits for that.

    Where nodes may not be read nobody can say what will never fit. Then a wait is given up after
    *wait_s* seconds in which nothing else of the namespace ran, and so nothing could make room.
    """
    waits = [(pod, found) for pod in pods if (found := unschedulable(pod)) and found.lacks_memory]
    if not waits:
        watch.unfit_since = None
        return None
    pod, found = waits[0]
    asked = (
        f"it asks for {found.request.human} of memory" if found.request else "it asks for memory"
    )
    if (verdict := never_fits(api, caps, pod)) is not None:
        return Refused(message=verdict, for_good=True)
    waiting = Refused(
        message=f"{asked}, which no node has free now; it starts when there is room",
        for_good=False,
    )
    if caps.rooms(pod["spec"]):
        return waiting
    if watch.unfit_since is None:
        watch.unfit_since = now
    if now - watch.events_at >= _SCALING_S:
        watch.events_at = now
        watch.scaling_given_up = _gave_up_scaling(api, pod)
    if watch.scaling_given_up:
        words = "and the cluster's autoscaler says that no node it could add has as much"
    elif now - watch.unfit_since < wait_s:
        return waiting
    elif _others_run(api, pod):
        watch.unfit_since = now
        return waiting
    else:
        words = (
            f"which no node has had free for {(now - watch.unfit_since) / 60:.0f} min, although"
            " nothing else of the namespace was running"
        )
    return Refused(
        message=f"{asked}, {words} (the scheduler: {found.message.split('. ')[0]})."
        " Lower its memory, add a larger node, give the orchestrator the right to list nodes, or"
        " set pending_timeout_min",
        for_good=True,
    )


def _gave_up_scaling(api: KubeApi, pod: Manifest) -> bool:
    """Whether an autoscaler has looked at the pod, and would not add a node for it."""
    reasons = [event.get("reason") for event in api.events_of(pod["metadata"]["name"])]
    return "NotTriggerScaleUp" in reasons and "TriggeredScaleUp" not in reasons


def _others_run(api: KubeApi, pod: Manifest) -> bool:
    """Whether a pod of the namespace runs, other than an orchestrator, that may make room."""
    return any(
        other["status"].get("phase") == "Running"
        and other["metadata"]["name"] != pod["metadata"]["name"]
        and not stays(other)
        for other in api.pods()
    )


def is_without_pod(status: Manifest) -> bool:
    """Whether a Job that has begun has no pod, nor had one that is about to be counted."""
    uncounted = status.get("uncountedTerminatedPods") or {}
    return bool(status.get("startTime")) and not any(
        (
            status.get("active"),
            status.get("terminating"),
            status.get("succeeded"),
            *uncounted.values(),
        )
    )


def why_no_pod(api: KubeApi, job: str) -> Refused | None:
    """Why a Job has no pod: a LimitRange or a quota, in the user's words."""
    for event in reversed(api.events_of(job)):
        if event.get("reason") == "FailedCreate":
            return read_refusal(event.get("message") or "")
    return None


def oom_of_node(api: KubeApi, ending: Ending) -> Ending:
    """*ending*; a signal 9 without a reason counts as a kill for memory where the node had one."""
    evidence = ending.evidence
    is_explained = evidence.oom_killed or evidence.disruption or evidence.storage_evicted
    if evidence.exit_code != _SIGKILLED or is_explained or not evidence.node:
        return ending
    since = time.time() - ending.runtime_s - _SLACK_S
    for event in api.node_oom_events(evidence.node):
        stamp = event.get("lastTimestamp") or event.get("eventTime")
        if stamp and _seconds(stamp) >= since:
            message = f"node {evidence.node} ran out of memory: {event.get('message')}"
            return replace(ending, evidence=replace(evidence, oom_killed=True), message=message)
    return ending


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()
