"""The most memory a cluster can give a pod: nodes, LimitRanges, quotas, and their refusals.

The parsers are pure; `CapsReader` asks the API, only after something was killed or refused, and
goes on with what it may read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlops_ext.errors import QuantityError
from mlops_ext.memory import Caps, Quantity

Manifest = Mapping[str, Any]

_QUOTA = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<asked>.*?), used: (?P<used>.*?),"
    r" limited: (?P<hard>[^\n]*)"
)
_LIMIT_RANGE = re.compile(
    r"maximum memory usage per (?P<kind>\w+) is (?P<most>\S+?), but (?:limit|request) is"
    r" (?P<asked>\S+?)[.,]?(?:$|\s)"
)
_BLOCKING = frozenset({"NoSchedule", "NoExecute"})
_MEMORY_KEYS = ("limits.memory", "requests.memory", "memory")
_NOTHING = Quantity(0)
_KEEP_S = 30.0
"""Nodes come and go within minutes; steps killed in one go share an answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRoom:
    """What one node could give a step.

    Attributes:
        name: the node.
        allocatable: memory that pods may have there.
        taken: memory of pods that do not go away: daemons, this run's orchestrator.
    """

    name: str
    allocatable: Quantity
    taken: Quantity = _NOTHING

    @property
    def room(self) -> Quantity:
        """The largest pod it could ever take."""
        return Quantity(max(0, self.allocatable - self.taken))


def rooms_of(
    nodes: Iterable[Manifest], pods: Iterable[Manifest], template: Manifest
) -> list[NodeRoom]:
    """The nodes that a pod of *template* may run on, largest room first.

    Args:
        nodes: Node objects.
        pods: the pods there that stay (see `stays`).
        template: the spec of the pod: its node selector and tolerations count.
    """
    taken: dict[str, int] = {}
    for pod in pods:
        where = pod["spec"].get("nodeName")
        if where and stays(pod):
            taken[where] = taken.get(where, 0) + _request_of(pod)
    rooms = [
        NodeRoom(
            name=node["metadata"]["name"],
            allocatable=Quantity.parse(node["status"]["allocatable"]["memory"]),
            taken=Quantity(taken.get(node["metadata"]["name"], 0)),
        )
        for node in nodes
        if _may_run_on(node, template)
    ]
    return sorted(rooms, key=lambda room: room.room, reverse=True)


def stays(pod: Manifest) -> bool:
    """Whether a pod is there for good, as far as a step is concerned."""
    if (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}:
        return False
    owners = {owner["kind"] for owner in pod["metadata"].get("ownerReferences") or ()}
    labels = pod["metadata"].get("labels") or {}
    is_orchestrator = "run_id" in labels and "step_name" not in labels
    return is_orchestrator or bool(owners & {"DaemonSet", "Node"})


def _request_of(pod: Manifest) -> int:
    total = 0
    for container in pod["spec"]["containers"]:
        text = ((container.get("resources") or {}).get("requests") or {}).get("memory")
        total += Quantity.parse(text) if text else 0
    return total


def _may_run_on(node: Manifest, template: Manifest) -> bool:
    spec, labels = node.get("spec") or {}, node["metadata"].get("labels") or {}
    if spec.get("unschedulable"):
        return False
    selector = template.get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return False
    return all(
        taint["effect"] not in _BLOCKING or _tolerated(taint, template.get("tolerations") or ())
        for taint in spec.get("taints") or ()
    )


def _tolerated(taint: Manifest, tolerations: Sequence[Manifest]) -> bool:
    return any(
        toleration.get("key") in {None, "", taint["key"]}
        and toleration.get("effect") in {None, "", taint["effect"]}
        and (
            toleration.get("operator") == "Exists" or toleration.get("value") == taint.get("value")
        )
        for toleration in tolerations
    )


def caps_of(
    rooms: Sequence[NodeRoom],
    limit_ranges: Iterable[Manifest],
    quotas: Iterable[Manifest],
    max_memory: Quantity | None,
) -> Caps:
    """The caps that follow from what was read."""
    most = [
        Quantity.parse(item["max"]["memory"])
        for one in limit_ranges
        for item in one["spec"]["limits"]
        if item.get("type") in {"Container", "Pod", None} and "memory" in (item.get("max") or {})
    ]
    hard = [
        Quantity.parse(one["spec"]["hard"][key])
        for one in quotas
        for key in _MEMORY_KEYS
        if key in (one["spec"].get("hard") or {})
    ]
    return Caps(
        node=rooms[0].room if rooms else None,
        node_name=rooms[0].name if rooms else "",
        limit_range=min(most, default=None),
        quota=min(hard, default=None),
        max_memory=max_memory,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A pod that admission refused.

    Attributes:
        message: what to tell the user.
        for_good: no waiting will help.
    """

    message: str
    for_good: bool


def read_refusal(text: str) -> Refused | None:
    """A FailedCreate event's message in the user's words, or None where it is no such refusal."""
    if found := _LIMIT_RANGE.search(text):
        return Refused(
            message=f"the namespace's LimitRange allows {found['most']} per"
            f" {found['kind'].lower()}, and {found['asked']} was asked for; lower the step's"
            " memory or raise the LimitRange",
            for_good=True,
        )
    if found := _QUOTA.search(text):
        asked, hard = (_sizes(found[key]) for key in ("asked", "hard"))
        never = [key for key in asked if key in hard and asked[key] > hard[key]]
        words = (
            f"the quota {found['name']} allows {found['hard'].strip()}; used: {found['used']};"
            f" this step asks for {found['asked']}"
        )
        advice = "it can never run; lower its memory or raise the quota"
        return Refused(
            message=f"{words}: {advice if never else 'it starts when others have finished'}",
            for_good=bool(never),
        )
    if "is forbidden" in text:
        return Refused(message=text, for_good=False)
    return None


def _sizes(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        try:
            found[key] = Quantity.parse(value)
        except (QuantityError, ValueError):
            continue
    return found


class CapsReader:
    """Asks the API for caps; keeps an answer for a while.

    Args:
        fetch: returns the JSON objects of a kind ("nodes", "pods", "limitranges",
            "resourcequotas"), and none where they may not be read.
        clock: seconds.
    """

    def __init__(
        self,
        fetch: Callable[[str], Sequence[Manifest]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch, self._clock = fetch, clock
        self._kept: dict[str, tuple[float, Sequence[Manifest]]] = {}

    def rooms(self, template: Manifest) -> list[NodeRoom]:
        """The nodes a pod may run on; none where nodes may not be read."""
        nodes = self._get("nodes")
        return rooms_of(nodes, self._get("pods") if nodes else (), template)

    def caps(self, template: Manifest, max_memory: Quantity | None) -> Caps:
        """Everything that limits a pod of *template*."""
        return caps_of(
            self.rooms(template), self._get("limitranges"), self._get("resourcequotas"), max_memory
        )

    def _get(self, kind: str) -> Sequence[Manifest]:
        at, found = self._kept.get(kind, (float("-inf"), ()))
        if self._clock() - at > _KEEP_S:
            found = self._fetch(kind)
            self._kept[kind] = (self._clock(), found)
        return found
