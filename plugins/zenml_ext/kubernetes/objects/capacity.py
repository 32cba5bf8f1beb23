"""The most memory a cluster can give a pod: nodes, LimitRanges, quotas, and their refusals.

The parsers are pure; `CapsReader` asks the API, only after something was killed or refused, and
goes on with what it may read.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mlops_ext.errors import QuantityError
from mlops_ext.memory import Caps, Quantity
from zenml_ext.kubernetes.objects.nodes import may_run_on, pod_memory

Manifest = Mapping[str, Any]

_QUOTA = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<asked>.*?), used: (?P<used>.*?),"
    r" limited: (?P<hard>[^\n]*)"
)
_LIMIT_RANGE = re.compile(
    r"maximum memory usage per (?P<kind>\w+) is (?P<most>\S+?), but (?:limit|request) is"
    r" (?P<asked>\S+?)[.,]?(?:$|\s)"
)
# Words of refusals that no waiting changes: the pod lacks a size, or breaks a LimitRange.
_NEVER = re.compile(r"must specify|minimum \w+ usage|limit to request ratio")
_MEMORY_KEYS = ("limits.memory", "requests.memory", "memory")
_LIMITED = frozenset({"Container", "Pod", None})
_NOTHING = Quantity(0)
# Nodes come and go within minutes; steps killed in one go share an answer.
_KEEP_S = 30.0


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
    nodes: Iterable[Manifest], pods: Iterable[Manifest], template: Manifest, run_id: str = ""
) -> list[NodeRoom]:
    """The nodes that a pod of *template* may ever run on, largest room first.

    Args:
        nodes: Node objects.
        pods: the pods there.
        template: the spec of the pod.
        run_id: its pipeline run, whose orchestrator stays as long as the step.
    """
    taken: dict[str, int] = {}
    for pod in pods:
        where = pod["spec"].get("nodeName")
        if where and stays(pod, run_id):
            taken[where] = taken.get(where, 0) + pod_memory(pod["spec"])
    rooms = [
        NodeRoom(
            name=node["metadata"]["name"],
            allocatable=Quantity.parse(node["status"]["allocatable"]["memory"]),
            taken=Quantity(taken.get(node["metadata"]["name"], 0)),
        )
        for node in nodes
        if may_run_on(node, template)
    ]
    return sorted(rooms, key=lambda room: room.room, reverse=True)


def is_over(pod: Manifest) -> bool:
    """Whether a pod has ended."""
    return (pod.get("status") or {}).get("phase") in {"Succeeded", "Failed"}


def is_orchestrator_of(pod: Manifest, run_id: str) -> bool:
    """Whether *pod* orchestrates the run, and so is there until all its steps have ended."""
    labels = pod["metadata"].get("labels") or {}
    is_own = bool(run_id) and labels.get("run_id") == run_id
    return is_own and "step_name" not in labels and not is_over(pod)


def stays(pod: Manifest, run_id: str = "") -> bool:
    """Whether a pod is there for good, as far as a step of the run is concerned."""
    owners = {owner["kind"] for owner in pod["metadata"].get("ownerReferences") or ()}
    is_of_its_node = bool(owners & {"DaemonSet", "Node"}) and not is_over(pod)
    return is_of_its_node or is_orchestrator_of(pod, run_id)


def share_of(pods: Sequence[Manifest], key: str) -> int:
    """What *pods* take of a quota's entry *key*."""
    section = "limits" if key.startswith("limits") else "requests"
    return sum(pod_memory(pod["spec"], section) for pod in pods)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A pod that admission refused.

    Attributes:
        message: what to tell the user.
        for_good: no waiting will help.
    """

    message: str
    for_good: bool


def read_refusal(text: str, orchestrators: Sequence[Manifest] = ()) -> Refused | None:
    """A FailedCreate event's message in the user's words, or None if it is no such refusal.

    Args:
        text: the message.
        orchestrators: the run's own orchestrator pods: they do not make room for a step.
    """
    if found := _LIMIT_RANGE.search(text):
        return Refused(
            message=f"the namespace's LimitRange allows {found['most']} per"
            f" {found['kind'].lower()}, and {found['asked']} was asked for; lower the step's"
            " memory or raise the LimitRange",
            for_good=True,
        )
    if found := _QUOTA.search(text):
        asked, hard = (_sizes(found[key]) for key in ("asked", "hard"))
        own = {key: share_of(orchestrators, key) for key in asked if key in _MEMORY_KEYS}
        never = [key for key in asked if key in hard and asked[key] + own.get(key, 0) > hard[key]]
        words = (
            f"the quota {found['name']} allows {found['hard'].strip()}; used: {found['used']};"
            f" this step asks for {found['asked']}"
        )
        if beside := max((own.get(key, 0) for key in never), default=0):
            words += f", beside {Quantity(beside).human} of this run's own orchestrator"
        advice = "it can never run; lower its memory or raise the quota"
        return Refused(
            message=f"{words}: {advice if never else 'it starts when others have finished'}",
            for_good=bool(never),
        )
    if " is invalid: " in text:  # as with a LimitRange whose default is below ZenML's request
        return Refused(message=f"{text}; set the step's memory", for_good=True)
    if "is forbidden" in text:
        return Refused(message=text, for_good=bool(_NEVER.search(text)))
    return None


def _sizes(text: str) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in text.split(","):
        key, _, value = part.strip().partition("=")
        with suppress(QuantityError, ValueError):
            found[key] = Quantity.parse(value)
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

    def rooms(self, template: Manifest, run_id: str = "") -> list[NodeRoom]:
        """The nodes a pod may ever run on; none if nodes may not be read."""
        nodes = self._get("nodes")
        return rooms_of(nodes, self._get("pods") if nodes else (), template, run_id)

    def orchestrators(self, run_id: str) -> list[Manifest]:
        """The pods that orchestrate the run."""
        return [pod for pod in self._get("pods") if is_orchestrator_of(pod, run_id)]

    def caps(
        self, template: Manifest, max_memory: Quantity | None, run_id: str, main: Quantity | None
    ) -> Caps:
        """Everything that limits the step's container in a pod of *template*.

        Args:
            template: the spec of the pod.
            max_memory: the user's cap.
            run_id: the pipeline run.
            main: what the step's container asks for in it.
        """
        rooms, quotas = self.rooms(template, run_id), self._get("resourcequotas")
        beside = max(0, pod_memory(template) - (main or 0))
        own = self.orchestrators(run_id) if quotas else ()  # their share of a quota stays taken
        most = [
            Quantity.parse(item["max"]["memory"])
            for one in self._get("limitranges")
            for item in one["spec"]["limits"]
            if item.get("type") in _LIMITED and "memory" in (item.get("max") or {})
        ]
        hard = [
            max(1, Quantity.parse(one["spec"]["hard"][key]) - beside - share_of(own, key))
            for one in quotas
            for key in _MEMORY_KEYS
            if key in (one["spec"].get("hard") or {})
        ]
        return Caps(
            node=Quantity(max(1, rooms[0].room - beside)) if rooms else None,
            node_name=rooms[0].name if rooms else "",
            limit_range=min(most, default=None),
            quota=Quantity(min(hard)) if hard else None,
            max_memory=max_memory,
        )

    def _get(self, kind: str) -> Sequence[Manifest]:
        at, found = self._kept.get(kind, (float("-inf"), ()))
        if self._clock() - at > _KEEP_S:
            found = self._fetch(kind)
            self._kept[kind] = (self._clock(), found)
        return found
