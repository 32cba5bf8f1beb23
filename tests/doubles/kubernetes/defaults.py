"""The fields that Kubernetes fills in by itself, and the checks that refuse an object."""

from __future__ import annotations

import functools
import re
import uuid

from tests.doubles.kubernetes.store import ApiError, Object

UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18} | {
    unit + "i": 1 << (10 * power) for power, unit in enumerate("KMGTPE", start=1)
}


@functools.lru_cache(maxsize=1024)
def quantity(text: object) -> float:
    found = re.fullmatch(r"([0-9.]+(?:[eE][+-]?\d+)?)(m|[kKMGTPE]i?)?", str(text))
    if not found:
        raise ApiError(400, "BadRequest", f'unable to parse quantity "{text}"')
    if found[2] == "m":
        return float(found[1]) / 1000
    return float(found[1]) * UNITS[found[2] or ""]


def default_container(container: Object) -> None:
    container.setdefault("imagePullPolicy", "IfNotPresent")
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    resources = container["resources"]
    for name, value in (resources.get("limits") or {}).items():
        resources.setdefault("requests", {}).setdefault(name, value)
    for name, value in (resources.get("requests") or {}).items():
        limit = (resources.get("limits") or {}).get(name)
        if limit is not None and quantity(value) > quantity(limit):
            raise ApiError(
                422,
                "Invalid",
                f'spec.containers[0].resources.requests: Invalid value: "{value}":'
                f" must be less than or equal to {name} limit of {limit}",
            )


def default_pod_spec(spec: Object) -> None:
    for container in [*spec.get("containers", []), *(spec.get("initContainers") or [])]:
        default_container(container)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("schedulerName", "default-scheduler")
    spec.setdefault("securityContext", {})
    spec.setdefault("terminationGracePeriodSeconds", 30)
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]


def default_job(job: Object) -> None:
    spec, meta = job["spec"], job["metadata"]
    uid = meta.setdefault("uid", str(uuid.uuid4()))
    meta.setdefault("annotations", {})
    policy = spec.get("podFailurePolicy")
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("completions", 1)
    spec.setdefault("parallelism", 1)
    spec.setdefault("manualSelector", False)
    spec.setdefault("suspend", False)
    spec.setdefault("podReplacementPolicy", "Failed" if policy else "TerminatingOrFailed")
    template = spec["template"]
    labels = template.setdefault("metadata", {}).setdefault("labels", {})
    if "selector" in spec and not spec["manualSelector"]:
        raise ApiError(422, "Invalid", "spec.selector: `selector` not auto-generated")
    if "controller-uid" in labels or "batch.kubernetes.io/controller-uid" in labels:
        raise ApiError(422, "Invalid", "metadata.labels: must be the job's own controller-uid")
    labels |= {
        "batch.kubernetes.io/controller-uid": uid,
        "batch.kubernetes.io/job-name": meta["name"],
        "controller-uid": uid,
        "job-name": meta["name"],
    }
    spec["selector"] = {"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}
    default_pod_spec(template["spec"])
    if policy and template["spec"]["restartPolicy"] != "Never":
        raise ApiError(422, "Invalid", "podFailurePolicy needs restartPolicy Never")
    names = {container["name"] for container in template["spec"]["containers"]}
    for rule in (policy or {}).get("rules", []):
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if bool(codes) == bool(conditions):
            raise ApiError(422, "Invalid", "one of onExitCodes and onPodConditions must be given")
        if codes and codes.get("containerName", next(iter(names))) not in names:
            raise ApiError(422, "Invalid", f"no container {codes['containerName']}")
        for condition in conditions or []:
            condition.setdefault("status", "True")
    if len(meta["name"]) > 63:
        raise ApiError(422, "Invalid", "metadata.name: must be no more than 63 characters")
    job["status"] = {}


def qos_class(spec: Object) -> str:
    guaranteed, any_set = True, False
    for container in spec["containers"]:
        limits = container["resources"].get("limits") or {}
        requests = container["resources"].get("requests") or {}
        any_set = any_set or bool(limits or requests)
        for name in ("cpu", "memory"):
            if name not in limits or requests.get(name) != limits[name]:
                guaranteed = False
    return "Guaranteed" if guaranteed else "Burstable" if any_set else "BestEffort"


def default_pod(pod: Object, token_volume: str) -> None:
    """What admission adds when a pod is created."""
    spec = pod["spec"]
    default_pod_spec(spec)
    spec.setdefault("enableServiceLinks", True)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    spec.setdefault("priority", 0)
    spec.setdefault("serviceAccountName", "default")
    spec["serviceAccount"] = spec["serviceAccountName"]
    tolerations = spec.setdefault("tolerations", [])
    for key in ("not-ready", "unreachable"):
        tolerations.append(
            {
                "effect": "NoExecute",
                "key": f"node.kubernetes.io/{key}",
                "operator": "Exists",
                "tolerationSeconds": 300,
            }
        )
    spec.setdefault("volumes", []).append(
        {"name": token_volume, "projected": {"defaultMode": 420, "sources": token_sources()}}
    )
    for container in spec["containers"]:
        container.setdefault("volumeMounts", []).append(
            {
                "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                "name": token_volume,
                "readOnly": True,
            }
        )
    pod["status"] = {"phase": "Pending", "qosClass": qos_class(spec)}


def token_sources() -> list[Object]:
    namespace = {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    return [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
        {"downwardAPI": {"items": [{**namespace, "path": "namespace"}]}},
    ]
