"""Nodes, and which of them a pod goes to."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict

from tests.doubles.kubernetes.cgroups import Cgroup
from tests.doubles.kubernetes.defaults import quantity
from tests.doubles.kubernetes.selectors import matches_selector
from tests.doubles.kubernetes.sizes import total
from tests.doubles.kubernetes.store import Object

CORDON = {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}
NOT_READY = {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}
AFFINITY = "node(s) didn't match Pod's node affinity/selector"
FULL = "Insufficient memory"


class Node:
    """One node: what it can give, and the pods that run on it."""

    def __init__(
        self,
        name: str,
        memory: str,
        *,
        real: bool,
        cpu: str = "64",
        pods: str = "5000",
        labels: dict[str, str] | None = None,
        taints: tuple[Object, ...] = (),
    ) -> None:
        self.name, self.labels, self.taints = name, labels or {}, taints
        self.allocatable = {"memory": memory, "cpu": cpu, "pods": pods}
        self.cgroup = Cgroup(f"kubedouble-{uuid.uuid4().hex[:8]}") if real else None
        if self.cgroup:
            self.cgroup.limit(quantity(memory))

    def manifest(self) -> Object:
        status = {
            "allocatable": dict(self.allocatable),
            "capacity": dict(self.allocatable),
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        labels = {"kubernetes.io/hostname": self.name, **self.labels}
        spec = {"taints": list(self.taints)} if self.taints else {}
        meta = {"name": self.name, "labels": labels}
        return {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": meta,
            "spec": spec,
            "status": status,
        }


class Scheduler:
    """Finds pods a node, for one pass over them: what each node has is counted once."""

    def __init__(self, nodes: list[Object], pods: list[Object]) -> None:
        self.nodes = nodes
        self.used: dict[str, float] = defaultdict(float)
        self.here: dict[str, list[Object]] = defaultdict(list)
        self.choosy: dict[str, list[Object]] = defaultdict(list)
        for pod in pods:
            if name := pod["spec"].get("nodeName"):
                self._put(pod, name)

    def _put(self, pod: Object, name: str) -> None:
        self.used[name] += total(pod, "requests", given=True)
        self.here[name].append(pod)
        if _anti_affinity(pod):
            self.choosy[name].append(pod)

    def place(self, pod: Object) -> tuple[str | None, str]:
        """The node with the most room for a pod, or None and why not."""
        reasons: Counter[str] = Counter()
        hopeful = 0  # nodes on which the preemption of others might have helped
        rooms: dict[str, tuple[bool, float]] = {}
        for node in self.nodes:
            name = node["metadata"]["name"]
            has = quantity(node["status"]["allocatable"]["memory"])
            reason = self._refusal(pod, node, name, has)
            if reason is None:
                rooms[name] = (not _dislikes(pod, node), has - self.used[name])
            else:
                reasons[reason] += 1
                hopeful += reason == FULL and total(pod, "requests") <= has
        if rooms:
            best = max(rooms, key=lambda name: rooms[name])
            self._put(pod, best)
            return best, ""
        words = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        none = f"0/{len(self.nodes)} nodes are available"
        preemption = {
            "No preemption victims found for incoming pod": hopeful,
            "Preemption is not helpful for scheduling": len(self.nodes) - hopeful,
        }
        tried = ", ".join(f"{count} {why}" for why, count in preemption.items() if count)
        return None, f"{none}: {words}. no new claims to deallocate, preemption: {none}: {tried}."

    def _refusal(  # noqa: PLR0911 - a filter each
        self, pod: Object, node: Object, name: str, has: float
    ) -> str | None:
        """The words of the first filter that rejects the node."""
        if node["spec"].get("unschedulable"):
            return "node(s) were unschedulable"
        if not tolerated(pod, node):
            return "node(s) had untolerated taint(s)"
        if not selected(pod, node):
            return AFFINITY
        if self.used[name] + total(pod, "requests") > has:
            return FULL
        if _anti_affinity(pod) and any(_repels(pod, other) for other in self.here[name]):
            return "node(s) didn't match pod anti-affinity rules"
        if any(_repels(other, pod) for other in self.choosy[name]):
            return "node(s) didn't match pod anti-affinity rules"
        return None


def tolerated(pod: Object, node: Object) -> bool:
    """Whether *pod* tolerates what the node's taints keep away."""

    def fits(one: Object, taint: Object) -> bool:
        if one.get("key") not in {None, "", taint["key"]}:
            return False
        if one.get("effect") not in {None, "", taint["effect"]}:
            return False
        return one.get("operator") == "Exists" or one.get("value") == taint.get("value")

    return all(
        any(fits(one, taint) for one in pod["spec"].get("tolerations") or ())
        for taint in node["spec"].get("taints") or ()
        if taint["effect"] in {"NoSchedule", "NoExecute"}
    )


def selected(pod: Object, node: Object) -> bool:
    """Whether the pod's selector and required affinity allow the node."""
    labels = node["metadata"].get("labels") or {}
    wanted = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get(
        "nodeSelectorTerms"
    )
    return not terms or any(matches_selector(term, labels) for term in terms)


def _dislikes(pod: Object, node: Object) -> bool:
    """Whether a preferred affinity of the pod speaks against the node."""
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    labels = node["metadata"].get("labels") or {}
    return not all(
        matches_selector(one["preference"], labels)
        for one in affinity.get("preferredDuringSchedulingIgnoredDuringExecution") or ()
    )


def _anti_affinity(pod: Object) -> list[Object]:
    affinity = (pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
    return affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or []


def _repels(pod: Object, other: Object) -> bool:
    return any(
        matches_selector(term["labelSelector"], other["metadata"].get("labels") or {})
        for term in _anti_affinity(pod)
    )
