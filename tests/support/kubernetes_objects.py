"""Kubernetes objects of the double beside recorded ones: their shapes, and what they say."""

import json
from pathlib import Path

RECORDINGS = Path(__file__).parents[1] / "data" / "kubernetes"
IGNORED = {
    # what a double of one API server has no business to have
    "openshift-service-ca.crt",
    "observedGeneration",
    "lastProbeTime",
    "managedFields",
}


def shape(value):
    """Names of fields and the values that say something; identifiers and times are blank."""
    if isinstance(value, dict):
        return {k: shape(v) for k, v in value.items() if k not in IGNORED}
    if isinstance(value, list):
        return [shape(item) for item in value]
    return type(value).__name__


def verdict(items):
    """What a reader of the objects can conclude."""
    job = next(item for item in items if item["kind"] == "Job")
    conditions = [
        (c["type"], c["status"], c["reason"]) for c in job["status"].get("conditions", [])
    ]
    pods = [
        {
            "phase": pod["status"]["phase"],
            "qos": pod["status"]["qosClass"],
            "conditions": sorted(
                (c["type"], c["status"], c.get("reason"))
                for c in pod["status"].get("conditions", [])
            ),
            "states": [
                (name, state.get("exitCode"), state.get("reason"))
                for status in pod["status"].get("containerStatuses", [])
                for name, state in status["state"].items()
            ],
            "init": [
                (status["restartCount"], end["exitCode"], end["reason"])
                for status in pod["status"].get("initContainerStatuses", [])
                for end in (status["lastState"] or status["state"]).values()
            ],
            "refusal": pod["status"].get("reason"),
        }
        for pod in items
        if pod["kind"] == "Pod"
    ]
    counts = {k: job["status"].get(k) for k in ("active", "failed", "succeeded", "ready")}
    return {"conditions": conditions, "pods": pods, "counts": counts}


def manifest_of(recorded):
    """The Job as it was created: the recording without what the server has added."""
    spec = json.loads(json.dumps(recorded["spec"]))
    for key in (
        "selector",
        "completionMode",
        "completions",
        "parallelism",
        "suspend",
        "manualSelector",
        "podReplacementPolicy",
    ):
        spec.pop(key, None)
    template = spec["template"]
    template["metadata"]["labels"] = {"rec": "1"}
    pod = template["spec"]
    for key in ("dnsPolicy", "schedulerName", "securityContext", "terminationGracePeriodSeconds"):
        pod.pop(key, None)
    for container in pod["containers"]:
        if container["image"] == "localhost/py:probe":
            container["image"] = "localhost/zenml:test"
        for key in ("terminationMessagePath", "terminationMessagePolicy", "imagePullPolicy"):
            container.pop(key, None)
    if "activeDeadlineSeconds" in spec:
        spec["activeDeadlineSeconds"] = 1
    name = recorded["metadata"]["name"]
    return {"metadata": {"name": name, "labels": {"rec": "1"}}, "spec": spec}


def missing(recorded, ours, path=""):
    """Paths of the recording that our object lacks, or has with another type."""
    if isinstance(recorded, dict) and isinstance(ours, dict):
        found = []
        for key, value in recorded.items():
            if key not in ours:
                found.append(f"{path}.{key}")
            else:
                found += missing(value, ours[key], f"{path}.{key}")
        return found
    if isinstance(recorded, list) and isinstance(ours, list):
        if "sources" in path:
            return []
        return [
            each
            for one, other in zip(recorded, ours, strict=False)
            for each in missing(one, other, f"{path}[]")
        ]
    return [] if recorded == ours else [f"{path}: {ours}, recorded {recorded}"]
