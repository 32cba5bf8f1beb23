"""Whoever adds nodes for pods that wait: the cluster autoscaler, or Karpenter, in their own words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.doubles.kubernetes import clock
from tests.doubles.kubernetes.defaults import quantity
from tests.doubles.kubernetes.jobs import event
from tests.doubles.kubernetes.scheduler import Node, selected, tolerated
from tests.doubles.kubernetes.sizes import total

if TYPE_CHECKING:
    from tests.doubles.kubernetes.cluster import Cluster

WORDS = {
    "cluster-autoscaler": {
        "yes": ("TriggeredScaleUp", "pod triggered scale-up: [{{pool 0->1 (max: {most})}}]"),
        "no": ("NotTriggerScaleUp", "pod didn't trigger scale-up: {n} Insufficient memory"),
    },
    "karpenter": {
        "yes": ("Nominated", "Pod should schedule on: nodeclaim/pool-{n}"),
        "no": ("FailedScheduling", "Failed to schedule pod, no instance type has enough resources"),
    },
}


class Autoscaler:
    """Looks every ten seconds; a node it adds is there *delay_s* later, and gone once idle.

    Its pool is scaled to zero at first: what it could add is no Node object yet.
    """

    LOOK_S, IDLE_S = 10.0, 600.0

    def __init__(
        self,
        cluster: Cluster,
        *,
        memory: str,
        kind: str = "cluster-autoscaler",
        most: int = 3,
        delay_s: float = 90.0,
        **options: object,
    ) -> None:
        self.cluster, self.memory, self.kind, self.most = cluster, memory, kind, most
        self.delay_s, self.options = delay_s, options
        self.coming: list[float] = []
        self.idle: dict[str, float] = {}
        self.number, self.next_look = 0, 0.0

    def tick(self) -> None:
        at = clock.monotonic()
        for due in [due for due in self.coming if due <= at]:
            self.coming.remove(due)
            self.number += 1
            self.cluster.add_node(f"pool-{self.number}", self.memory, **self.options)
            self.idle[f"pool-{self.number}"] = at
        if at >= self.next_look:
            self.next_look = at + self.LOOK_S
            self._look(at)

    def _look(self, at: float) -> None:
        model = Node("pool", self.memory, real=False, **self.options).manifest()  # type: ignore[arg-type]
        pods = [
            p for p in self.cluster.list("pods") if p["status"]["phase"] in {"Pending", "Running"}
        ]
        for pod in pods:
            if "nodeName" in pod["spec"] or not pod["status"].get("conditions"):
                continue
            fits = (
                total(pod, "requests") <= quantity(self.memory)
                and selected(pod, model)
                and tolerated(pod, model)
            )
            helps = fits and len(self.idle) + len(self.coming) < self.most
            reason, words = WORDS[self.kind]["yes" if helps else "no"]
            text = words.format(most=self.most, n=self.number + 1)
            event(self.cluster.store, pod, reason, text, "Normal" if helps else "Warning")
            if helps and len(self.coming) < sum("nodeName" not in p["spec"] for p in pods):
                self.coming.append(at + self.delay_s)
        busy = {pod["spec"].get("nodeName") for pod in pods}
        for name in list(self.idle):
            if name in busy:
                self.idle[name] = at
            elif at - self.idle[name] > self.IDLE_S:
                del self.idle[name]
                self.cluster.remove_node(name)
