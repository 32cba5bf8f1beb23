"""Pods without processes: they use memory and end as their annotations say, in any clock.

``double/ends`` holds "exit-code reason seconds", one for each attempt, with semicolons;
``double/ends-NAME`` the same for another container, init container or native sidecar of the pod.
``double/uses`` holds JSON in place of the first: ``{"curve": [[seconds, bytes], …], "code": 0}``;
with ``"fails": n`` the first n pods of the step that come to their end exit with 1.
Such a pod is killed as the kernel would: above its limit, or if its node's pods use it up together.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from tests.doubles.kubernetes import clock
from tests.doubles.kubernetes.defaults import quantity
from tests.doubles.kubernetes.pod_status import set_phase
from tests.doubles.kubernetes.store import Object, Store, now

if TYPE_CHECKING:
    from tests.doubles.kubernetes.kubelet import Kubelet

OOM = {"exitCode": 137, "reason": "OOMKilled"}
TAKEN = {"exitCode": 137, "reason": "Error"}


class Companion(Protocol):
    """What runs beside the step in its pod, as our watcher does."""

    def look(self, used: float, limit: float | None) -> None: ...

    def end(self, code: int) -> str:
        """The termination message."""
        ...


@dataclass(kw_only=True)
class Pretence:
    """A pod without a process."""

    pod: Object
    main: Object
    begins: float
    due: float
    ended: Object
    curve: list[tuple[float, float]]
    others: dict[str, tuple[Object, float]] = field(default_factory=dict)
    limit: float | None = None
    runs: bool = False
    companion: Companion | None = None

    @property
    def uid(self) -> str:
        return self.pod["metadata"]["uid"]

    def used(self) -> float:
        """What it would use now, if it could: straight lines between the curve's points."""
        at = clock.monotonic() - self.begins
        before = (0.0, 0.0)
        for point in self.curve if self.runs else ():
            if at < point[0]:
                share = (at - before[0]) / (point[0] - before[0])
                return before[1] + share * (point[1] - before[1])
            before = point
        return before[1] if self.runs else 0.0


class Pretender:
    """The kubelet's part for pods without processes."""

    def __init__(self, store: Store, kubelet: Kubelet) -> None:
        self.store, self.kubelet = store, kubelet
        self.pods: dict[str, Pretence] = {}
        self.failures: dict[tuple[str, str], int] = {}  # by run and step, its own
        self.companion: Callable[[Object], Companion | None] = lambda pod: None
        self.on_exhaustion: Callable[[str], None] = lambda node: None

    def start(self, pod: Object) -> None:
        spec, begins = pod["spec"], clock.monotonic()
        states: dict[str, Object] = {}
        for container in spec.get("initContainers") or ():
            name, is_sidecar = container["name"], container.get("restartPolicy") == "Always"
            if is_sidecar:
                states[name] = {"running": {"startedAt": now()}}
                continue
            ended, seconds = self._end_of(pod, name)
            begins += seconds
            states[name] = {"terminated": _ended(ended)}
            if ended["exitCode"]:
                set_phase(self.store, pod, "Failed", states)
                self.kubelet.over(pod)
                return
        main = next((c for c in spec["containers"] if c["name"] == "main"), spec["containers"][0])
        uses = json.loads(_annotations(pod).get("double/uses", "{}"))
        curve = [(float(s), float(size)) for s, size in uses.get("curve", [])]
        if curve:
            is_early = self.failures.get(_step_of(pod), 0) < uses.get("fails", 0)
            code = 1 if is_early else uses.get("code", 0)
            ended = {"exitCode": code, "reason": "Error" if code else "Completed"}
            seconds = curve[-1][0]
        else:
            ended, seconds = self._end_of(pod, "")
        one = Pretence(
            pod=pod, main=main, begins=begins, due=begins + seconds, ended=ended, curve=curve
        )
        beside = (*(spec.get("initContainers") or ()), *spec["containers"])
        for container in beside:
            key = f"double/ends-{container['name']}"
            if (
                container is not main
                and key in _annotations(pod)
                and container["name"]
                not in {name for name, state in states.items() if "terminated" in state}
            ):
                end, after = self._end_of(pod, container["name"])
                one.others[container["name"]] = (end, begins + after)
        limit = (main["resources"].get("limits") or {}).get("memory")
        one.limit = quantity(limit) if limit else None
        self.pods[one.uid] = one
        if states:
            set_phase(self.store, pod, "Pending", states)
        self._begin(one)

    def tick(self) -> None:
        """Let the pods use memory, and end those whose time has come or that were asked to."""
        for one in list(self.pods.values()):
            self._begin(one)
            used = one.used()
            if one.companion:
                one.companion.look(min(used, one.limit or used), one.limit)
        self._kill_on_full_nodes()
        for one in list(self.pods.values()):
            self._beside(one)
            if self.kubelet.gone(one.pod):
                self._end(one, TAKEN)
            elif one.limit is not None and one.used() > one.limit:
                self._end(one, OOM)
            elif clock.monotonic() >= one.due and not self._waits_for_others(one):
                self._end(one, one.ended)

    def _begin(self, one: Pretence) -> None:
        if one.runs or clock.monotonic() < one.begins:
            return
        one.runs = True
        running = {"running": {"startedAt": now()}}
        states = {container["name"]: running for container in one.pod["spec"]["containers"]}
        set_phase(self.store, one.pod, "Running", states)
        one.companion = self.companion(one.pod) if one.curve else None

    def _beside(self, one: Pretence) -> None:
        """End the other containers in their time; a native sidecar runs again at once."""
        sidecars = {c["name"] for c in one.pod["spec"].get("initContainers") or ()}
        for name, (end, due) in list(one.others.items()):
            if clock.monotonic() < due:
                continue
            del one.others[name]
            ended = _ended(end)
            again = {"running": {"startedAt": now()}} if name in sidecars else None
            set_phase(
                self.store,
                one.pod,
                "Running",
                {name: again or {"terminated": ended}},
                {name: ended} if again else {},
            )

    def _waits_for_others(self, one: Pretence) -> bool:
        """Whether a plain second container still runs, which a pod's end waits for."""
        plain = {c["name"] for c in one.pod["spec"]["containers"]}
        return any(name in plain for name in one.others)

    def _kill_on_full_nodes(self) -> None:
        by_node: dict[str, list[Pretence]] = {}
        for one in self.pods.values():
            by_node.setdefault(one.pod["spec"]["nodeName"], []).append(one)
        for name, here in by_node.items():
            node = self.kubelet.nodes.get(name)
            has = quantity(node.allocatable["memory"]) if node else float("inf")
            while here and sum(min(one.used(), one.limit or one.used()) for one in here) > has:
                victim = max(here, key=lambda one: _badness(one, has))
                here.remove(victim)
                self.on_exhaustion(name)
                self._end(victim, OOM)

    def _end(self, one: Pretence, ended: Mapping[str, object]) -> None:
        del self.pods[one.uid]
        if ended is one.ended and ended["exitCode"]:
            step = _step_of(one.pod)
            self.failures[step] = self.failures.get(step, 0) + 1
        ended = _ended(ended)
        if one.companion and (message := one.companion.end(ended["exitCode"])):
            ended["message"] = message
        states = {one.main["name"]: {"terminated": ended}}
        found = self.kubelet.pod(one.uid) or one.pod
        for status in found["status"].get("containerStatuses", []):
            if "running" in status["state"] and status["name"] != one.main["name"]:
                states[status["name"]] = {
                    "terminated": _ended({"exitCode": 0, "reason": "Completed"})
                }
        for status in found["status"].get("initContainerStatuses", []):
            if "running" in status["state"]:
                states[status["name"]] = {
                    "terminated": _ended({"exitCode": 0, "reason": "Completed"})
                }
        codes = [
            (states.get(status["name"]) or status["state"]).get("terminated", {}).get("exitCode", 0)
            for status in found["status"].get("containerStatuses", [])
        ]
        set_phase(self.store, one.pod, "Failed" if any(codes) else "Succeeded", states)
        self.kubelet.over(one.pod)

    def _end_of(self, pod: Object, name: str) -> tuple[Object, float]:
        key = f"double/ends-{name}" if name else "double/ends"
        chosen = _annotations(pod).get(key, "0 Completed 0").split(";")
        attempt = int(pod["metadata"]["labels"].get("mlops-ext.io/attempt", 1))
        code, reason, seconds = chosen[min(attempt, len(chosen)) - 1].split()[:3]
        return {"exitCode": int(code), "reason": reason}, float(seconds)


def _step_of(pod: Object) -> tuple[str, str]:
    labels = pod["metadata"]["labels"]
    return labels.get("run_id", ""), labels.get("step_name", "")


def _annotations(pod: Object) -> dict[str, str]:
    return pod["metadata"].get("annotations") or {}


def _ended(end: Mapping[str, object]) -> Object:
    ids = {"containerID": f"containerd://{uuid.uuid4().hex * 2}"}
    return {**ids, "finishedAt": now(), "startedAt": now(), **end}


def _badness(one: Pretence, has: float) -> float:
    """The kernel's score: what it uses, shifted by what the kubelet makes of its request."""
    resources = one.main["resources"]
    request = quantity((resources.get("requests") or {}).get("memory", 0))
    guaranteed = (
        request
        and (resources.get("limits") or {}).get("memory")
        == (resources.get("requests") or {}).get("memory")
        and one.pod["status"].get("qosClass") == "Guaranteed"
    )
    shift = -997 if guaranteed else min(999, max(2, 1000 - 1000 * request / has))
    return min(one.used(), one.limit or one.used()) + shift * has / 1000
