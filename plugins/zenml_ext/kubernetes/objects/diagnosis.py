"""What ended a step's Job, read from the Job and Pod objects that Kubernetes leaves behind.

Pure: JSON objects in, facts out. What Kubernetes writes is not what one would guess: the reason
OOMKilled comes with any exit code (the kernel killed a child), with 0 on a Job that is complete,
and an eviction for disk exits with 137 just as a kill for memory does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from mlops_ext.errors import QuantityError
from mlops_ext.memory import Evidence, Quantity
from zenml_ext.kubernetes.objects.job import MAIN, memory_of
from zenml_ext.memory.exits import SIGKILLED

Manifest = Mapping[str, Any]

_OOM_KILLED = "OOMKilled"
_DISRUPTED = "DisruptionTarget"
_DISK_WORDS = re.compile(
    r"ephemeral[- ]storage|EmptyDir volume|local ephemeral|DiskPressure|inodes|nodefs|imagefs",
    re.IGNORECASE,
)
_REPORT_KEY = "mlops-ext"
_SLACK_S = 60.0
"""Clocks of nodes differ, and events are written late."""
_RULE_WORDS = re.compile(
    r"Pod \S+ has condition (?P<condition>\w+) matching"
    r"|Container (?P<container>\S+) for pod \S+ failed with exit code (?P<code>\d+) matching"
)
"""How Kubernetes says which rule of a failure policy has ended a Job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Termination:
    """How the last pod of a Job ended.

    Attributes:
        evidence: the facts, for the memory policy.
        memory: the limit it had when it ended, in-place growth counted in; None: no limit.
        reason: the Job's own reason ("BackoffLimitExceeded", "DeadlineExceeded"), or "".
        message: what to tell the user, in one sentence.
        pod: name of the pod; "" where none was left to read.
        runtime_s: how long its main container ran.
        failed: how many pods of the Job count as failed.
    """

    evidence: Evidence
    memory: Quantity | None
    reason: str
    message: str
    pod: str = ""
    runtime_s: float = 0.0
    failed: int = 0


def diagnose(job: Manifest, pods: Sequence[Manifest]) -> Termination:
    """What ended *job*, from the newest of its *pods*; they may all be gone already."""
    status = job.get("status") or {}
    condition: Manifest = next(
        (
            one
            for one in status.get("conditions") or ()
            if one["type"] in {"Failed", "Complete"} and one["status"] == "True"
        ),
        {},
    )
    failed = status.get("failed") or 0
    reason, words = condition.get("reason") or "", condition.get("message") or ""
    succeeded = condition.get("type") == "Complete"
    template = job["spec"]["template"]["spec"]["containers"]
    if not pods:
        main = next((one for one in template if one["name"] == MAIN), template[0])
        evidence = _evidence_in(words, succeeded=succeeded)
        taken = "the pod was taken from its node, and nothing is left of it"
        return Termination(
            evidence=evidence,
            memory=memory_of(main)[0],
            reason=reason,
            message=taken if evidence.disruption else words or "no pod was left to tell why",
            failed=failed,
        )
    pod = max(pods, key=lambda one: one["metadata"].get("creationTimestamp") or "")
    evidence = _evidence_of(pod, succeeded=succeeded)
    main = next(
        (one for one in pod["spec"]["containers"] if one["name"] == evidence.container),
        pod["spec"]["containers"][0],
    )
    return Termination(
        evidence=evidence,
        memory=memory_of(main)[0],
        reason=reason,
        message=_message(evidence, pod, words),
        pod=pod["metadata"]["name"],
        runtime_s=_runtime_s(pod),
        failed=failed,
    )


def _evidence_in(words: str, *, succeeded: bool) -> Evidence:
    """What the message of a Job tells where its pod is gone.

    A pod that is drained, or makes room for one of a higher priority, is deleted, and so is one
    whose node is gone: no trace is left of it but the rule that has ended its Job.
    """
    found = _RULE_WORDS.search(words)
    if found is None:
        return Evidence(succeeded=succeeded)
    return Evidence(
        succeeded=succeeded,
        disruption=_DISRUPTED if found["condition"] == _DISRUPTED else "",
        exit_code=int(found["code"]) if found["code"] else None,
        container=found["container"],
    )


def _evidence_of(pod: Manifest, *, succeeded: bool) -> Evidence:
    status = pod["status"]
    terminated = {
        one["name"]: (one.get("state") or {}).get("terminated") or {}
        for one in status.get("containerStatuses") or ()
    }
    killed = [name for name, end in terminated.items() if end.get("reason") == _OOM_KILLED]
    name = next(iter(killed), MAIN)
    if MAIN in killed:
        name = MAIN
    end = terminated.get(name) or next(iter(terminated.values()), {})
    report = _report(end.get("message") or "")
    has_failed = status.get("phase") == "Failed"
    words = status.get("message") or ""
    is_evicted = status.get("reason") == "Evicted"
    is_disk = is_evicted and bool(_DISK_WORDS.search(words))
    return Evidence(
        exit_code=end.get("exitCode"),
        oom_killed=(bool(killed) or bool(report.get("oom_kills"))) and has_failed and not is_disk,
        memory_error=bool(report.get("memory_error")),
        disruption="" if is_disk else _disruption(status),
        storage_evicted=is_disk,
        succeeded=succeeded or status.get("phase") == "Succeeded",
        peak=Quantity(int(report["peak"])) if report.get("peak") else None,
        container=name if terminated else None,
        node=pod["spec"].get("nodeName"),
    )


def _disruption(status: Manifest) -> str:
    """Why the pod was taken from its node, or "" where it was not."""
    for condition in status.get("conditions") or ():
        if condition["type"] == _DISRUPTED and condition["status"] == "True":
            words = condition.get("message") or status.get("message") or ""
            return f"{condition.get('reason') or _DISRUPTED}: {words}".rstrip(": ")
    if status.get("reason") in {"Evicted", "Preempting", "NodeLost", "Shutdown", "Terminated"}:
        return f"{status['reason']}: {status.get('message') or ''}".rstrip(": ")
    return ""


def _report(text: str) -> Mapping[str, Any]:
    """What the pod's monitor wrote as termination message; nothing if the message is another's."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and _REPORT_KEY in found else {}


def _message(evidence: Evidence, pod: Manifest, words: str) -> str:
    status = pod["status"]
    where = f" on node {evidence.node}" if evidence.node else ""
    if evidence.oom_killed:
        return f"container {evidence.container} was killed for memory{where}"
    if evidence.storage_evicted:
        return (
            f"the pod was evicted{where} for its use of disk, not of memory:"
            f" {str(status.get('message') or '').strip()}"
        )
    if evidence.disruption:
        return f"the pod was taken from its node{where}: {evidence.disruption}"
    for one in status.get("containerStatuses") or ():
        if waiting := (one.get("state") or {}).get("waiting"):
            return f"{waiting.get('reason')}: {waiting.get('message') or ''}".rstrip(": ")
    if evidence.exit_code:
        return f"container {evidence.container} ended with exit code {evidence.exit_code}{where}"
    return words


def _runtime_s(pod: Manifest) -> float:
    for one in pod["status"].get("containerStatuses") or ():
        end = (one.get("state") or {}).get("terminated") or {}
        begin, finish = _seconds(end.get("startedAt")), _seconds(end.get("finishedAt"))
        if one["name"] == MAIN and begin is not None and finish is not None:
            return max(0.0, finish - begin)
    return 0.0


def _seconds(stamp: str | None) -> float | None:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp() if stamp else None


def is_unexplained_kill(termination: Termination) -> bool:
    """True for a signal 9 that Kubernetes gives no reason for; the node's events may."""
    evidence = termination.evidence
    is_explained = evidence.oom_killed or evidence.disruption or evidence.storage_evicted
    return evidence.exit_code == SIGKILLED and not is_explained


def killed_with_node(
    termination: Termination, events: Sequence[Manifest], now: float
) -> Termination:
    """*termination*, as a kill for memory if the node ran out of it while the step ran.

    Args:
        termination: an unexplained kill.
        events: the node's SystemOOM events.
        now: seconds since the epoch.
    """
    node = termination.evidence.node
    since = now - termination.runtime_s - _SLACK_S
    for event in events:
        at = _seconds(event.get("lastTimestamp") or event.get("eventTime"))
        if at is not None and at >= since:
            message = f"node {node} ran out of memory: {event.get('message')}"
            evidence = replace(termination.evidence, oom_killed=True)
            return replace(termination, evidence=evidence, message=message)
    return termination


@dataclass(frozen=True, slots=True, kw_only=True)
class Unschedulable:
    """A pod that no node takes.

    Attributes:
        message: the scheduler's words.
        lacks_memory: memory is among its reasons.
        request: the memory it asks for.
    """

    message: str
    lacks_memory: bool
    request: Quantity | None

    @property
    def asks(self) -> str:
        """What it asks for, in words."""
        return (
            f"it asks for {self.request.human} of memory" if self.request else "it asks for memory"
        )


def unschedulable(pod: Manifest) -> Unschedulable | None:
    """Why the scheduler has found no node for *pod*, or None where it has, or not yet tried."""
    for condition in pod["status"].get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            message = condition.get("message") or ""
            try:
                request = memory_of(pod["spec"]["containers"][0])[1]
            except QuantityError:
                request = None
            return Unschedulable(
                message=message,
                lacks_memory="Insufficient memory" in message,
                request=request,
            )
    return None
