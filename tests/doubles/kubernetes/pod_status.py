"""A pod's status as a kubelet writes it."""

from __future__ import annotations

from tests.doubles.kubernetes.store import Object, Store, now


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


def waiting(main: Object, reason: str) -> Object:
    message = {"message": f"failed to pull image {main['image']}"} if "Pull" in reason else {}
    return container_status(main, {"waiting": {"reason": reason, **message}}, ready=False)


def container_status(main: Object, state: Object, *, ready: bool) -> Object:
    status: Object = {
        "image": main["image"],
        "imageID": "" if "waiting" in state else "sha256:0",
        "lastState": {},
        "name": main["name"],
        "ready": ready,
        "restartCount": 0,
        "started": ready,
        "state": state,
        "volumeMounts": [
            {key: mount[key] for key in ("mountPath", "name")}
            | ({"readOnly": True, "recursiveReadOnly": "Disabled"} if mount.get("readOnly") else {})
            for mount in main.get("volumeMounts", [])
        ],
    }
    if "waiting" not in state:
        status["containerID"] = state.get("terminated", {}).get("containerID", "containerd://0")
        status["resources"] = main["resources"]
        status["allocatedResources"] = main["resources"].get("requests", {})
        status["user"] = {"linux": {"gid": 0, "supplementalGroups": [0], "uid": 0}}
    return status


def set_phase(store: Store, pod: Object, phase: str, container: Object) -> None:
    """Give *pod* its phase and its container's status, unless it is over already."""
    stamp = now()
    over = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(phase)
    is_running = phase == "Running"

    def edit(pod: Object) -> None:
        status = pod["status"]
        if status["phase"] in {"Succeeded", "Failed"}:
            return
        status["phase"] = phase
        main = pod["spec"]["containers"][0]
        if "resources" in container:
            container["resources"] = main["resources"]
            container["allocatedResources"] = main["resources"].get("requests", {})
        status["containerStatuses"] = [container]
        status.setdefault("startTime", stamp)
        kept = [
            c
            for c in status.get("conditions", [])
            if c["type"] in {"DisruptionTarget", "PodScheduled"}
        ]
        unready = over or ("ContainersNotReady" if not is_running else None)
        message = "containers with unready status: [main]"
        status["conditions"] = [
            condition("PodReadyToStartContainers", not over),
            condition("Initialized", True, "PodCompleted" if phase == "Succeeded" else None),
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
        if requests := main["resources"].get("requests"):
            status["allocatedResources"] = requests
            status["resources"] = main["resources"]

    meta = pod["metadata"]
    store.change("pods", meta["namespace"], meta["name"], edit)
