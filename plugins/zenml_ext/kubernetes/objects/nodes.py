"""Which nodes a pod may run on, and how much memory it asks for, as Kubernetes computes both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlops_ext.memory import Quantity

Manifest = Mapping[str, Any]

_BLOCKING = frozenset({"NoSchedule", "NoExecute"})
# Prefixes of taints that come and go: not ready, cordoned, short of memory or disk.
_MOMENTARY = ("node.kubernetes.io/", "node.cloudprovider.kubernetes.io/")
_MATCHES: Mapping[str, Callable[[str | None, Sequence[str]], bool]] = {
    "In": lambda found, values: found in values,
    "NotIn": lambda found, values: found not in values,
    "Exists": lambda found, _values: found is not None,
    "DoesNotExist": lambda found, _values: found is None,
    "Gt": lambda found, values: found is not None and int(found) > int(values[0]),
    "Lt": lambda found, values: found is not None and int(found) < int(values[0]),
}


def pod_memory(spec: Manifest, section: str = "requests") -> Quantity:
    """What the pod of *spec* asks for in all; *section* may be "limits" too.

    Containers and native sidecars run together; an init container runs beside the sidecars before
    it; resources of the pod as a whole come before both; the runtime class's overhead is added.
    """
    whole = _memory(spec, section)
    if whole is None:
        sidecars, most = 0, 0
        for container in spec.get("initContainers") or ():
            size = _memory(container, section) or 0
            is_sidecar = container.get("restartPolicy") == "Always"
            most = max(most, sidecars + size)
            sidecars += size if is_sidecar else 0
        running = sum(_memory(container, section) or 0 for container in spec["containers"])
        whole = max(most, sidecars + running)
    overhead = (spec.get("overhead") or {}).get("memory")
    return Quantity(whole + (Quantity.parse(overhead) if overhead else 0))


def _memory(owner: Manifest, section: str) -> int | None:
    resources = owner.get("resources") or {}
    text = (resources.get(section) or {}).get("memory")
    if text is None and section == "requests":  # a limit alone counts as the request
        text = (resources.get("limits") or {}).get("memory")
    return Quantity.parse(text) if text else None


def may_run_on(node: Manifest, spec: Manifest) -> bool:
    """Whether a pod of *spec* may ever run on *node*.

    What may be over in a minute does not count: that the node is cordoned, not ready, or short
    of something.
    """
    labels = node["metadata"].get("labels") or {}
    selector = spec.get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in selector.items()):
        return False
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required and not any(_meets(node, term) for term in required["nodeSelectorTerms"]):
        return False
    return all(
        taint["effect"] not in _BLOCKING
        or taint["key"].startswith(_MOMENTARY)
        or _tolerated(taint, spec.get("tolerations") or ())
        for taint in (node.get("spec") or {}).get("taints") or ()
    )


def _meets(node: Manifest, term: Manifest) -> bool:
    """Whether *node* meets all of a node selector term; an empty term matches nothing."""
    meta = node["metadata"]
    rules = [(rule, meta.get("labels") or {}) for rule in term.get("matchExpressions") or ()]
    rules += [(rule, {"metadata.name": meta["name"]}) for rule in term.get("matchFields") or ()]
    return bool(rules) and all(
        _MATCHES[rule["operator"]](known.get(rule["key"]), rule.get("values") or ())
        for rule, known in rules
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
