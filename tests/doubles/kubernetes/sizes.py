"""How much a pod asks for in all, as Kubernetes computes it (component-helpers, resource/helpers.go)."""

from __future__ import annotations

from collections.abc import Mapping

from tests.doubles.kubernetes.defaults import quantity
from tests.doubles.kubernetes.store import Object

STATUSES = ("initContainerStatuses", "containerStatuses")


def total(pod: Object, section: str, resource: str = "memory", *, given: bool = False) -> float:
    """*section* ("requests", "limits") of a pod, init containers and native sidecars counted in.

    With *given*, as the scheduler and quotas count a pod that runs: a wish for more counts from
    the moment it is uttered, unless the kubelet has called it infeasible.
    """
    spec = pod["spec"]
    known = _statuses(pod) if given else {}
    wishes = not _is_infeasible(pod)

    def size(container: Object) -> float:
        wanted = _size(container.get("resources"), section, resource)
        status = known.get(container["name"], {})
        if "resources" not in status:
            return wanted
        sizes = [_size(status["resources"], section, resource), wanted if wishes else 0]
        if section == "requests":
            sizes.append(quantity(status["allocatedResources"].get(resource, 0)))
        return max(sizes)

    sidecars = most = 0.0
    for container in spec.get("initContainers") or ():
        most = max(most, sidecars + size(container))
        if container.get("restartPolicy") == "Always":
            sidecars += size(container)
    whole = max(most, sidecars + sum(map(size, spec["containers"])))
    if resource in ((spec.get("resources") or {}).get(section) or {}):
        whole = _size(spec["resources"], section, resource)
    return whole + quantity((spec.get("overhead") or {}).get(resource, 0))


def _size(resources: Mapping | None, section: str, resource: str) -> float:
    return quantity(((resources or {}).get(section) or {}).get(resource, 0))


def _statuses(pod: Object) -> dict[str, Object]:
    status = pod.get("status") or {}
    return {one["name"]: one for field in STATUSES for one in status.get(field) or ()}


def _is_infeasible(pod: Object) -> bool:
    return any(
        one["type"] == "PodResizePending" and one.get("reason") == "Infeasible"
        for one in (pod.get("status") or {}).get("conditions") or ()
    )
