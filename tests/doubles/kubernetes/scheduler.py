"""Nodes, and which of them a pod goes to."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict

from tests.doubles.kubernetes.cgroups import Cgroup
from tests.doubles.kubernetes.defaults import memory_in, quantity
from tests.doubles.kubernetes.selectors import matches_selector
from tests.doubles.kubernetes.store import Object


class Node:
    """One node: what it can give, and the pods that run on it."""

    def __init__(self, name: str, allocatable: str, *, real: bool) -> None:
        self.name, self.allocatable = name, allocatable
        self.cgroup = Cgroup(f"kubedouble-{uuid.uuid4().hex[:8]}") if real else None
        if self.cgroup:
            self.cgroup.limit(quantity(allocatable))

    def manifest(self) -> Object:
        status = {
            "allocatable": {"memory": self.allocatable, "cpu": "64", "pods": "5000"},
            "capacity": {"memory": self.allocatable, "cpu": "64", "pods": "5000"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        meta = {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}}
        return {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": {}, "status": status}


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
        self.used[name] += memory_in(pod, "requests")
        self.here[name].append(pod)
        if _anti_affinity(pod):
            self.choosy[name].append(pod)

    def place(self, pod: Object) -> tuple[str | None, str]:
        """The node for a pod, or None and why not."""
        reasons: Counter[str] = Counter()
        for node in self.nodes:
            name = node["metadata"]["name"]
            reason = self._refusal(pod, node, name)
            if reason is None:
                self._put(pod, name)
                return name, ""
            reasons[reason] += 1
        text = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        total = f"0/{len(self.nodes)} nodes are available"
        return None, (
            f"{total}: {text}. no new claims to deallocate, preemption: {total}:"
            f" {len(self.nodes)} Preemption is not helpful for scheduling."
        )

    def _refusal(self, pod: Object, node: Object, name: str) -> str | None:
        allocatable = quantity(node["status"]["allocatable"]["memory"])
        if self.used[name] + memory_in(pod, "requests") > allocatable:
            return "Insufficient memory"
        if not _selected(pod, node):
            return "node(s) didn't match Pod's node affinity/selector"
        if _anti_affinity(pod) and any(_repels(pod, other) for other in self.here[name]):
            return "node(s) didn't match pod anti-affinity rules"
        if any(_repels(other, pod) for other in self.choosy[name]):
            return "node(s) didn't match pod anti-affinity rules"
        return None


def _selected(pod: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    wanted = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get(
        "nodeSelectorTerms"
    )
    return not terms or any(matches_selector(term, labels) for term in terms)


def _anti_affinity(pod: Object) -> list[Object]:
    affinity = (pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
    return affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or []


def _repels(pod: Object, other: Object) -> bool:
    return any(
        matches_selector(term["labelSelector"], other["metadata"].get("labels") or {})
        for term in _anti_affinity(pod)
    )
