"""Where a step's next pod may run: away from a node, and away from other steps."""

from __future__ import annotations

import copy
from typing import Any

from zenml_ext.kubernetes.objects.state import AttemptState

Manifest = dict[str, Any]

# A node keeps this taint for five minutes after it ran out. A pod whose memory the scheduler has
# set aside need not wait so long; the kubelet takes it, as it takes all but best-effort pods.
_PRESSURE = {
    "key": "node.kubernetes.io/memory-pressure",
    "operator": "Exists",
    "effect": "NoSchedule",
}


def place(job: Manifest, state: AttemptState, *, avoid_node: str, is_limited: bool) -> None:
    """Affinities: away from a node, and away from other steps of the run."""
    pod = job["spec"]["template"]["spec"]
    affinity = copy.deepcopy(pod.get("affinity") or {})
    labels = job["metadata"].get("labels") or {}
    if avoid_node:  # prefer any other node; where there is none the same one must do
        rule = {"key": "kubernetes.io/hostname", "operator": "NotIn", "values": [avoid_node]}
        preference = {"weight": 100, "preference": {"matchExpressions": [rule]}}
        rules = affinity.setdefault("nodeAffinity", {})
        key = "preferredDuringSchedulingIgnoredDuringExecution"
        rules[key] = [*(rules.get(key) or ()), preference]
    if state.isolated and "run_id" in labels:
        steps = {
            "matchLabels": {"run_id": labels["run_id"]},
            "matchExpressions": [{"key": "step_name", "operator": "Exists"}],
        }
        term = {"labelSelector": steps, "topologyKey": "kubernetes.io/hostname"}
        rules = affinity.setdefault("podAntiAffinity", {})
        key = "requiredDuringSchedulingIgnoredDuringExecution"
        rules[key] = [*(one for one in rules.get(key) or () if one != term), term]
    if affinity:
        pod["affinity"] = affinity
    if is_limited or state.isolated:
        tolerate_pressure(job)


def tolerate_pressure(job: Manifest) -> None:
    """Let the pod run on a node that was short of memory a moment ago."""
    pod = job["spec"]["template"]["spec"]
    others = [one for one in pod.get("tolerations") or () if one != _PRESSURE]
    pod["tolerations"] = [*others, dict(_PRESSURE)]
