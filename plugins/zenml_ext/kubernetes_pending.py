"""Why a step's pod is not there, not scheduled, or was killed without a reason: what events tell.

Asked only where something is wrong already; events that may not be read are as good as none.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from zenml_ext.kubernetes_api import KubeApi
from zenml_ext.kubernetes_caps import CapsReader, Refused, read_refusal
from zenml_ext.kubernetes_evidence import Ending, unschedulable

__all__ = ["is_without_pod", "never_fits", "oom_of_node", "why_no_pod"]

Manifest = Mapping[str, Any]

_SIGKILLED = 137
_SLACK_S = 60.0
"""Clocks of nodes differ, and events are written late."""
_NODES_NAMED = 5


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
