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

from mlops_ext.memory import Evidence, Quantity
from zenml_ext.kubernetes.objects.job import MAIN, main_container, memory_of
from zenml_ext.memory.exits import FULL_SHM, SIGBUS, SIGKILLED

Manifest = Mapping[str, Any]

_OOM_KILLED = "OOMKilled"
_DISRUPTED = "DisruptionTarget"
_DISK_WORDS = re.compile(
    r"ephemeral[- ](local )?storage|EmptyDir volume|local ephemeral|DiskPressure|inodes|nodefs"
    r"|imagefs",
    re.IGNORECASE,
)
# Exit codes of a container that somebody else has ended: 128 and SIGKILL or SIGTERM.
_TAKEN_DOWN = frozenset({SIGKILLED, 143})
# A pod's reason if the kubelet refused it: what the scheduler counted on was gone already.
_REFUSALS = re.compile(r"OutOf\w+|NodeAffinity|NodeShutdown|UnexpectedAdmissionError|Topology\w*")
_TAKEN = frozenset({"Evicted", "Preempting", "NodeLost", "Shutdown", "Terminated"})
_REPORT_KEY = "mlops-ext"
# Killed with no more than this of its own limit in use: the node may have run out.
_FAR_FROM_LIMIT = 0.6
# Clocks of nodes differ, and events are written late.
_SLACK_S = 60.0
# How Kubernetes says which rule of a failure policy has ended a Job.
_RULE_WORDS = re.compile(
    r"Pod (\S+/)?(?P<taken>\S+) has condition (?P<condition>\w+) matching"
    r"|Container (?P<container>\S+) for pod (\S+/)?(?P<ended>\S+) failed with exit code"
    r" (?P<code>\d+) matching"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Victim:
    """A container beside the step's own that was killed for memory.

    Attributes:
        name: its name.
        limit: its memory limit; None: none.
        is_init: it is an init container, and the step has not begun.
    """

    name: str
    limit: Quantity | None
    is_init: bool

    def __str__(self) -> str:
        kind = "init container" if self.is_init else "container"
        limit = f" at its own limit of {self.limit.human}" if self.limit else ""
        return f"{kind} {self.name} was killed for memory{limit}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Termination:
    """How the last pod of a Job ended.

    Attributes:
        evidence: the facts, for the memory policy.
        memory: the limit it had when it ended, in-place growth counted in; None: no limit.
        reason: the Job's own reason ("BackoffLimitExceeded", "DeadlineExceeded"), or "".
        message: what to tell the user, in one sentence.
        victim: another container that was killed for memory; None if there is none.
        node_ran_out: the node's own events say that it ran out of memory meanwhile.
        pod: name of the pod; "" if none was left to read.
        runtime_s: how long its main container ran.
        failed: how many pods of the Job have failed; those before the last that a kubelet refused
            do not count, though Kubernetes counts them.
    """

    evidence: Evidence
    memory: Quantity | None
    reason: str
    message: str
    victim: Victim | None = None
    node_ran_out: bool = False
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
    if rule := _RULE_WORDS.search(words):  # its pod may be gone, and an older one be left
        pods = [one for one in pods if one["metadata"]["name"] in {rule["taken"], rule["ended"]}]
    pod = max(pods, key=lambda one: one["metadata"].get("creationTimestamp") or "", default=None)
    facts: dict[str, Any] = {"reason": reason, "failed": failed}
    if pod is None:
        evidence = _evidence_in(words, succeeded=succeeded)
        taken = "the pod was taken from its node, and nothing is left of it"
        message = taken if evidence.disruption else words or "no pod was left to tell why"
        memory = memory_of(main_container(job))[0]
        return Termination(evidence=evidence, memory=memory, message=message, **facts)
    facts["failed"] -= sum(_is_refused(one) for one in pods if one is not pod)
    victim = _victim_of(pod)
    evidence = _evidence_of(pod, victim, succeeded=succeeded)
    return Termination(
        evidence=evidence,
        memory=_limit_of(pod),
        message=_message(evidence, pod, words, victim),
        victim=victim,
        pod=pod["metadata"]["name"],
        runtime_s=_runtime_s(pod),
        **facts,
    )


def _statuses(pod: Manifest, field: str = "containerStatuses") -> dict[str, Manifest]:
    """The containers' statuses by name."""
    return {one["name"]: one for one in pod["status"].get(field) or ()}


def _end_of(status: Manifest) -> Manifest:
    """How a container ended; empty if it has not."""
    found: Manifest = (status.get("state") or {}).get("terminated") or {}
    return found


def _main_status(pod: Manifest) -> Manifest:
    """The status of the container that runs the step; empty if it has none."""
    statuses = _statuses(pod)
    return statuses.get(MAIN) or next(iter(statuses.values()), {})


def _limit_of(pod: Manifest) -> Quantity | None:
    """The memory limit that the step's container really had when it ended.

    What the spec says is only a wish while a resize is deferred or infeasible. The kubelet's
    status (1.33 and later) tells what was given, else the report that the monitor left.
    """
    limit, _ = memory_of(main_container({"spec": {"template": pod}}))
    status = _main_status(pod)
    given, _ = memory_of(status)
    if given is not None:
        return given
    reported = _report(_end_of(status).get("message") or "").get("limit")
    return Quantity(int(reported)) if limit is not None and reported else limit


def _victim_of(pod: Manifest) -> Victim | None:
    """Another container than the step's that was killed for memory and took the pod along."""
    for field in ("initContainerStatuses", "containerStatuses"):
        for name, status in _statuses(pod, field).items():
            is_main = field == "containerStatuses" and status is _main_status(pod)
            if not is_main and _end_of(status).get("reason") == _OOM_KILLED:
                section = "initContainers" if field.startswith("init") else "containers"
                spec: Manifest = next(
                    (c for c in pod["spec"].get(section) or () if c["name"] == name), {}
                )
                stays = spec.get("restartPolicy") == "Always"  # a native sidecar
                is_init = section == "initContainers" and not stays
                return Victim(name=name, limit=memory_of(spec)[0], is_init=is_init)
    return None


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


def _evidence_of(pod: Manifest, victim: Victim | None, *, succeeded: bool) -> Evidence:
    status, main = pod["status"], _main_status(pod)
    end = _end_of(main)
    report = _report(end.get("message") or "")
    is_killed = end.get("reason") == _OOM_KILLED or bool(report.get("oom_kills"))
    # A container that ended by itself was not brought down by the kill of another one.
    is_brought_down = victim is not None and end.get("exitCode") in {None, *_TAKEN_DOWN}
    has_failed = status.get("phase") == "Failed"
    words = status.get("message") or ""
    is_disk = status.get("reason") == "Evicted" and bool(_DISK_WORDS.search(words))
    name = victim.name if victim and is_brought_down and not is_killed else main.get("name")
    return Evidence(
        exit_code=end.get("exitCode"),
        oom_killed=(is_killed or is_brought_down) and has_failed and not is_disk,
        memory_error=bool(report.get("memory_error")),
        disruption="" if is_disk else _disruption(status),
        storage_evicted=is_disk,
        succeeded=succeeded or status.get("phase") == "Succeeded" or end.get("exitCode") == 0,
        peak=Quantity(int(report["peak"])) if report.get("peak") else None,
        container=name,
        node=pod["spec"].get("nodeName"),
    )


def _disruption(status: Manifest) -> str:
    """Why the pod was taken from its node, or "" where it was not."""
    for condition in status.get("conditions") or ():
        if condition["type"] == _DISRUPTED and condition["status"] == "True":
            words = condition.get("message") or status.get("message") or ""
            return f"{condition.get('reason') or _DISRUPTED}: {words}".rstrip(": ")
    if (status.get("reason") or "") in _TAKEN or _is_refused({"status": status}):
        return f"{status['reason']}: {status.get('message') or ''}".rstrip(": ")
    return ""


def _is_refused(pod: Manifest) -> bool:
    return bool(_REFUSALS.fullmatch(pod["status"].get("reason") or ""))


def _report(text: str) -> Mapping[str, Any]:
    """What the pod's monitor wrote as termination message; nothing if the message is another's."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) and _REPORT_KEY in found else {}


def _message(  # noqa: PLR0911 - a cause each
    evidence: Evidence, pod: Manifest, words: str, victim: Victim | None
) -> str:
    status = pod["status"]
    where = f" on node {evidence.node}" if evidence.node else ""
    if victim is not None and (victim.is_init or evidence.container == victim.name):
        return f"{victim}{where}"
    if evidence.oom_killed:
        return f"container {evidence.container} was killed for memory{where}"
    if evidence.storage_evicted:
        return (
            f"the pod was evicted{where} for its use of disk, not of memory:"
            f" {str(status.get('message') or '').rstrip('. ')}"
        )
    if _is_refused(pod):
        return f"the kubelet refused the pod{where}: {evidence.disruption}"
    if evidence.disruption:
        return f"the pod was taken from its node{where}: {evidence.disruption}"
    for one in status.get("containerStatuses") or ():
        if waiting := (one.get("state") or {}).get("waiting"):
            return f"{waiting.get('reason')}: {waiting.get('message') or ''}".rstrip(": ")
    if evidence.memory_error:
        return f"the step raised a MemoryError{where}"
    if evidence.exit_code:
        beside = f"; {victim} meanwhile" if victim else ""
        bus = f" ({FULL_SHM})" if evidence.exit_code == SIGBUS else ""
        ended = f"container {evidence.container} ended with exit code {evidence.exit_code}{bus}"
        return f"{ended}{where}{beside}"
    return words


def _runtime_s(pod: Manifest) -> float:
    end = _end_of(_main_status(pod))
    begin, finish = _seconds(end.get("startedAt")), _seconds(end.get("finishedAt"))
    return max(0.0, finish - begin) if begin is not None and finish is not None else 0.0


def _seconds(stamp: str | None) -> float | None:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp() if stamp else None


def may_be_the_nodes(termination: Termination) -> bool:
    """Whether the node's events may explain a kill: it has no reason, or was far from its limit."""
    evidence, limit = termination.evidence, termination.memory
    if evidence.disruption or evidence.storage_evicted or termination.victim:
        return False
    if not evidence.oom_killed:
        return evidence.exit_code == SIGKILLED
    return (
        limit is not None and evidence.peak is not None and evidence.peak < _FAR_FROM_LIMIT * limit
    )


def with_node_events(
    termination: Termination, events: Sequence[Manifest], now: float
) -> Termination:
    """*termination*, as a kill for want of the node's memory if the node says so.

    Args:
        termination: a kill that may be the node's.
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
            return replace(termination, evidence=evidence, message=message, node_ran_out=True)
    return termination


def lacks_memory(pod: Manifest) -> str:
    """The scheduler's words about *pod* if it finds no node with the memory, or ""."""
    words = (
        str(one.get("message"))
        for one in pod["status"].get("conditions") or ()
        if one["type"] == "PodScheduled" and one["status"] == "False"
    )
    return next((one for one in words if "Insufficient memory" in one), "")
