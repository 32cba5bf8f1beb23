"""A pod's status as a kubelet writes it."""

from __future__ import annotations

from collections.abc import Mapping

from tests.doubles.kubernetes.sizes import total
from tests.doubles.kubernetes.store import Object, Store, now

WAITING: Object = {"waiting": {"reason": "PodInitializing"}}


def condition(
    kind: str, holds: bool, reason: str | None = None, message: str | None = None
) -> Object:
    result: Object = {
        "lastProbeTime": None,
        "lastTransitionTime": now(),
        "observedGeneration": 1,
        "status": str(holds),
        "type": kind,
    }
    if reason:
        result["reason"] = reason
    if message:
        result["message"] = message
    return result


def waiting(container: Object, reason: str) -> Object:
    """The state of a container that waits."""
    message = {"message": f"failed to pull image {container['image']}"} if "Pull" in reason else {}
    return {"waiting": {"reason": reason, **message}}


def _container_status(container: Object, state: Object, old: Object, restarts: int) -> Object:
    ready = "running" in state
    status: Object = {
        "image": container["image"],
        "imageID": "" if "waiting" in state else "sha256:0",
        "lastState": old if restarts else {},
        "name": container["name"],
        "ready": ready,
        "restartCount": restarts,
        "started": ready,
        "state": state,
        "volumeMounts": [
            {key: mount[key] for key in ("mountPath", "name")}
            | ({"readOnly": True, "recursiveReadOnly": "Disabled"} if mount.get("readOnly") else {})
            for mount in container.get("volumeMounts", [])
        ],
    }
    if "waiting" not in state:
        status["containerID"] = state.get("terminated", {}).get("containerID", "containerd://0")
        status["resources"] = container["resources"]
        status["allocatedResources"] = container["resources"].get("requests", {})
        status["user"] = {"linux": {"gid": 0, "supplementalGroups": [0], "uid": 0}}
    return status


def set_phase(
    store: Store,
    pod: Object,
    phase: str,
    states: Mapping[str, Object],
    restarted: Mapping[str, Object] | None = None,
) -> None:
    """Give *pod* its phase and its containers' states, unless it is over already.

    A container that *states* does not name keeps its state. What it was given stays what it was:
    the spec is only a wish by then. *restarted* has the end of each sidecar that runs again.
    """
    stamp = now()
    over = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase)
    is_running = phase == "Running"

    def statuses(status: Object, spec: Object, section: str, field: str) -> list[Object]:
        known = {one["name"]: one for one in status.get(field, [])}
        made = []
        for container in spec.get(section) or ():
            name = container["name"]
            old = known.get(name, {})
            ended = (restarted or {}).get(name)
            restarts = old.get("restartCount", 0) + bool(ended)
            last = {"terminated": ended} if ended else old.get("lastState", {})
            new = _container_status(
                container, states.get(name) or old.get("state") or WAITING, last, restarts
            )
            kept = {k: old[k] for k in ("resources", "allocatedResources") if k in old}
            made.append(new | kept if "resources" in new else new)
        return made

    def edit(pod: Object) -> None:
        status, spec = pod["status"], pod["spec"]
        if status["phase"] in {"Succeeded", "Failed"}:
            return
        status["phase"] = phase
        status["containerStatuses"] = statuses(status, spec, "containers", "containerStatuses")
        if spec.get("initContainers"):
            status["initContainerStatuses"] = statuses(
                status, spec, "initContainers", "initContainerStatuses"
            )
        status.setdefault("startTime", stamp)
        kept = [
            one
            for one in status.get("conditions", [])
            if one["type"] in {"DisruptionTarget", "PodScheduled"}
            or (one["type"].startswith("PodResize") and not over)
        ]
        names = [one["name"] for one in spec["containers"]]
        unready = over or ("ContainersNotReady" if not is_running else None)
        message = f"containers with unready status: [{' '.join(names)}]"
        status["conditions"] = [
            condition("PodReadyToStartContainers", not over),
            _initialized(status, spec, phase),
            *(
                condition(kind, is_running, unready, None if over or is_running else message)
                for kind in ("Ready", "ContainersReady")
            ),
            *kept,
        ]
        status |= {
            "hostIP": "10.200.0.2",
            "hostIPs": [{"ip": "10.200.0.2"}],
            "podIP": "10.244.0.9",
            "podIPs": [{"ip": "10.244.0.9"}],
            "observedGeneration": pod["metadata"]["generation"],
        }
        whole = {
            section: {
                resource: _short(size)
                for resource in ("cpu", "memory")
                if (size := total(pod, section, resource))
            }
            for section in ("limits", "requests")
        }
        if whole["requests"] and status["phase"] != "Running":  # a resize changes it elsewhere
            status.setdefault("allocatedResources", whole["requests"])
            status.setdefault("resources", {key: size for key, size in whole.items() if size})

    meta = pod["metadata"]
    store.change("pods", meta["namespace"], meta["name"], edit)


def _initialized(status: Object, spec: Object, phase: str) -> Object:
    """Whether the init containers are through; sidecars count once they have started."""
    sidecars = {
        one["name"]
        for one in spec.get("initContainers") or ()
        if one.get("restartPolicy") == "Always"
    }
    left = [
        one["name"]
        for one in status.get("initContainerStatuses", [])
        if "waiting" in one["state"]
        or (one["name"] not in sidecars and one["state"].get("terminated", {}).get("exitCode") != 0)
    ]
    if phase == "Succeeded" or not left:
        return condition("Initialized", True, "PodCompleted" if phase == "Succeeded" else None)
    message = f"containers with incomplete status: [{' '.join(left)}]"
    return condition("Initialized", False, "ContainersNotInitialized", message)


def reject(store: Store, pod: Object, reason: str, message: str) -> None:
    """What a kubelet does to a pod that was bound to it and that it has no place for."""

    def edit(pod: Object) -> None:
        pod["status"] = {
            "phase": "Failed",
            "qosClass": pod["status"]["qosClass"],
            "reason": reason,
            "message": f"Pod was rejected: {message}",
            "startTime": now(),
        }

    meta = pod["metadata"]
    store.change("pods", meta["namespace"], meta["name"], edit)


def _short(size: float) -> str:
    mib = size / (1 << 20)
    return f"{mib:.0f}Mi" if mib == int(mib) and mib else f"{size:g}"
