"""Where a step's next pod may run: away from a node, and away from steps without a limit."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from zenml_ext.kubernetes.objects.state import PREFIX, AttemptState

Manifest = dict[str, Any]

SIZED_LABEL = f"{PREFIX}/sized"
"""Whether the pod's memory is held to a limit that equals its request."""


_PRESSURE = {
    "key": "node.kubernetes.io/memory-pressure",
    "operator": "Exists",
    "effect": "NoSchedule",
}
"""A node keeps this taint for five minutes after it ran out. A pod whose memory the scheduler has
set aside need not wait so long; the kubelet takes it, as it takes all but best-effort pods."""


def place(job: Manifest, state: AttemptState, *, avoid_node: str, is_limited: bool) -> None:
    """Affinities: away from a node, and away from steps that nothing holds to their size."""
    pod = job["spec"]["template"]["spec"]
    affinity = copy.deepcopy(pod.get("affinity") or {})
    if avoid_node:
        _avoid(affinity, avoid_node)
    labels = job["metadata"].get("labels") or {}
    if (is_limited or state.isolated) and "run_id" in labels:
        same_run = {"matchLabels": {"run_id": labels["run_id"]}}
        rule = (
            {"key": "step_name", "operator": "Exists"}
            if state.isolated
            else {"key": SIZED_LABEL, "operator": "In", "values": ["false"]}
        )
        term = {
            "labelSelector": {**same_run, "matchExpressions": [rule]},
            "topologyKey": "kubernetes.io/hostname",
        }
        terms = affinity.setdefault("podAntiAffinity", {})
        key = "requiredDuringSchedulingIgnoredDuringExecution"
        others = [one for one in terms.get(key) or () if not _is_ours(one)]
        if state.attempts and (state.isolated or _was_unlimited(state)):
            others.append(term)
        terms[key] = others
        if not others:
            affinity.pop("podAntiAffinity")
    if affinity:
        pod["affinity"] = affinity
    if is_limited or state.isolated:
        tolerate_pressure(job)


def tolerate_pressure(job: Manifest) -> None:
    """Let the pod run on a node that was short of memory a moment ago."""
    pod = job["spec"]["template"]["spec"]
    others = [one for one in pod.get("tolerations") or () if one != _PRESSURE]
    pod["tolerations"] = [*others, dict(_PRESSURE)]


def _avoid(affinity: Manifest, node: str) -> None:
    """Prefer any other node; where there is none the same one must do."""
    rule = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [node]}
    preference = {"weight": 100, "preference": {"matchExpressions": [rule]}}
    rules = affinity.setdefault("nodeAffinity", {})
    key = "preferredDuringSchedulingIgnoredDuringExecution"
    rules[key] = [*(rules.get(key) or ()), preference]


def _is_ours(term: Mapping[str, Any]) -> bool:
    rules = (term.get("labelSelector") or {}).get("matchExpressions") or ()
    return any(
        rule["key"] == SIZED_LABEL or rule == {"key": "step_name", "operator": "Exists"}
        for rule in rules
    )


def _was_unlimited(state: AttemptState) -> bool:
    return any("memory_bytes" not in attempt for attempt in state.attempts)
