"""The kubelet and the scheduler: pods become processes under real memory limits."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

from tests.kubedouble.defaults import quantity
from tests.kubedouble.store import Object, Store, matches_selector, now

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class Cgroup:
    """A memory cgroup of either version; `parent` makes it a child."""

    def __init__(self, name: str, parent: Cgroup | None = None) -> None:
        self.is_v1 = V1.joinpath("memory.limit_in_bytes").exists()
        base = parent.path if parent else (V1 if self.is_v1 else V2)
        self.path = base / name
        self.path.mkdir()
        if not self.is_v1 and parent is None:
            (self.path / "cgroup.subtree_control").write_text("+memory")

    @staticmethod
    def usable() -> bool:
        """Whether memory cgroups and namespaces can be made here."""
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            return False
        try:
            probe = Cgroup(f"probe-{uuid.uuid4().hex[:8]}")
            probe.limit(64 << 20)
            probe.remove()
        except OSError:
            return False
        command = ["unshare", "--mount", "--uts", "--propagation", "private", "true"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def limit(self, size: float) -> None:
        name = "memory.limit_in_bytes" if self.is_v1 else "memory.max"
        (self.path / name).write_text(str(int(size)))

    def kills(self) -> int:
        name = "memory.oom_control" if self.is_v1 else "memory.events"
        for line in (self.path / name).read_text().splitlines():
            key, value = line.split()
            if key == "oom_kill":
                return int(value)
        return 0

    def pids(self) -> list[int]:
        try:
            return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def kill(self) -> None:
        for _ in range(100):
            pids = self.pids()
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)

    def remove(self) -> None:
        for _ in range(50):
            try:
                self.path.rmdir()
            except OSError:
                time.sleep(0.02)
            else:
                return


class Node:
    """One node: what it can give, and the pods that run on it."""

    def __init__(self, name: str, allocatable: str, *, real: bool) -> None:
        self.name, self.allocatable = name, allocatable
        self.cgroup = Cgroup(f"kubedouble-{uuid.uuid4().hex[:8]}") if real else None
        if self.cgroup:
            self.cgroup.limit(quantity(allocatable))

    def manifest(self) -> Object:
        status = {
            "allocatable": {"memory": self.allocatable, "cpu": "64", "pods": "5000"},
            "capacity": {"memory": self.allocatable, "cpu": "64", "pods": "5000"},
            "conditions": [{"type": "Ready", "status": "True"}],
        }
        meta = {"name": self.name, "labels": {"kubernetes.io/hostname": self.name}}
        return {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": {}, "status": status}


def request_of(pod: Object, name: str = "memory") -> float:
    return sum(
        quantity((container["resources"].get("requests") or {}).get(name, 0))
        for container in pod["spec"]["containers"]
    )


def schedule(pod: Object, nodes: list[Object], pods: list[Object]) -> tuple[str | None, str]:
    """The node for a pod, or None and why not."""
    reasons: dict[str, int] = {}
    for node in nodes:
        name = node["metadata"]["name"]
        here = [
            other
            for other in pods
            if other["spec"].get("nodeName") == name
            and other["status"]["phase"] in {"Pending", "Running"}
        ]
        used = sum(map(request_of, here))
        if used + request_of(pod) > quantity(node["status"]["allocatable"]["memory"]):
            reason = "Insufficient memory"
        elif not _selected(pod, node):
            reason = "node(s) didn't match Pod's node affinity/selector"
        elif any(_repels(pod, other) or _repels(other, pod) for other in here):
            reason = "node(s) didn't match pod anti-affinity rules"
        else:
            return name, ""
        reasons[reason] = reasons.get(reason, 0) + 1
    text = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    total = f"0/{len(nodes)} nodes are available"
    return None, (
        f"{total}: {text}. no new claims to deallocate, preemption: {total}:"
        f" {len(nodes)} Preemption is not helpful for scheduling."
    )


def _selected(pod: Object, node: Object) -> bool:
    labels = node["metadata"].get("labels") or {}
    wanted = pod["spec"].get("nodeSelector") or {}
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    affinity = (pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}
    terms = (affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get(
        "nodeSelectorTerms"
    )
    return not terms or any(matches_selector(term, labels) for term in terms)


def _repels(pod: Object, other: Object) -> bool:
    affinity = (pod["spec"].get("affinity") or {}).get("podAntiAffinity") or {}
    return any(
        matches_selector(term["labelSelector"], other["metadata"].get("labels") or {})
        for term in affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or []
    )


class Kubelet:
    """Runs pods. With real=False a pod ends as its annotations say, without a process:
    ``double/ends`` holds "exit-code reason seconds", one for each attempt, with semicolons."""

    def __init__(self, store: Store, root: Path, images: dict[str, str], *, real: bool) -> None:
        self.store, self.root, self.images, self.real = store, root, images, real
        self.nodes: dict[str, Node] = {}
        self.cgroups: dict[str, Cgroup] = {}
        self.started: set[str] = set()
        self.running: set[str] = set()
        self.closing = threading.Event()
        self.credentials: object = None
        self.environment: dict[str, str] = {}
        self.runs: list[tuple[str, str, float, float]] = []  # label step_name, pod, start, end

    def start(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if uid not in self.started:
            self.started.add(uid)
            threading.Thread(target=self._run, args=(pod,), daemon=True).start()

    def log_path(self, pod: Object) -> Path:
        return self.root / "logs" / f"{pod['metadata']['uid']}.log"

    def _run(self, pod: Object) -> None:
        place, name = pod["metadata"]["namespace"], pod["metadata"]["name"]
        main = pod["spec"]["containers"][0]
        if self.real and main["image"] not in self.images:
            self._set(place, name, "Pending", self._waiting(main, "ErrImagePull"))
            return
        self._set(place, name, "Pending", self._waiting(main, "ContainerCreating"))
        self.running.add(pod["metadata"]["uid"])
        try:
            ended = self._process(pod, main) if self.real else self._pretend(pod, main)
        except Exception as error:
            ended = {"exitCode": 128, "reason": "StartError", "message": str(error)}
        ended |= {"containerID": f"containerd://{uuid.uuid4().hex * 2}", "finishedAt": now()}
        ended.setdefault("startedAt", now())
        phase = "Succeeded" if ended["exitCode"] == 0 else "Failed"
        if not self.closing.is_set():
            self._set(place, name, phase, self._status(main, {"terminated": ended}, ready=False))
        self.running.discard(pod["metadata"]["uid"])

    def _pretend(self, pod: Object, main: Object) -> Object:
        ends = (pod["metadata"].get("annotations") or {}).get("double/ends", "0 Completed 0")
        attempt = int(pod["metadata"]["labels"].get("mlops-ext.io/attempt", 1))
        chosen = ends.split(";")
        code, reason, seconds = chosen[min(attempt, len(chosen)) - 1].split()[:3]
        self._running(pod, main)
        deadline = time.monotonic() + float(seconds)
        while time.monotonic() < deadline and not self._gone(pod):
            self.closing.wait(min(0.05, max(0.0, deadline - time.monotonic())))
        return {"exitCode": int(code), "reason": reason}

    def _gone(self, pod: Object) -> bool:
        found = self.store.find("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
        return found is None or bool(found["metadata"].get("deletionTimestamp"))

    def _running(self, pod: Object, main: Object) -> str:
        stamp = now()
        state = self._status(main, {"running": {"startedAt": stamp}}, ready=True)
        self._set(pod["metadata"]["namespace"], pod["metadata"]["name"], "Running", state)
        return stamp

    def _process(self, pod: Object, main: Object) -> Object:
        node = self.nodes[pod["spec"]["nodeName"]]
        home = self.root / "pods" / pod["metadata"]["uid"]
        home.mkdir(parents=True)
        cgroup = Cgroup(pod["metadata"]["uid"], node.cgroup)
        self.cgroups[pod["metadata"]["uid"]] = cgroup
        limits = main["resources"].get("limits") or {}
        if "memory" in limits:
            cgroup.limit(quantity(limits["memory"]))
        script = self._script(pod, main, home, cgroup)
        self.log_path(pod).parent.mkdir(exist_ok=True)
        stamp = self._running(pod, main)
        begin = time.monotonic()
        with self.log_path(pod).open("wb") as log:
            process = subprocess.Popen(
                [
                    "unshare",
                    "--mount",
                    "--uts",
                    "--propagation",
                    "private",
                    "/bin/sh",
                    "-c",
                    script,
                ],
                env=self._environment(pod, main),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=home,
            )
            code = self._wait(pod, process, cgroup)
        kills = cgroup.kills()
        cgroup.kill()
        cgroup.remove()
        self.cgroups.pop(pod["metadata"]["uid"], None)
        step = pod["metadata"]["labels"].get("step_name", "")
        self.runs.append((step, pod["metadata"]["name"], begin, time.monotonic()))
        reason = "OOMKilled" if kills else "Completed" if code == 0 else "Error"
        ended: Object = {"exitCode": code, "reason": reason, "startedAt": stamp}
        message = (home / "termination-log").read_text(errors="replace")[:4096]
        if message:
            ended["message"] = message
        shutil.rmtree(home, ignore_errors=True)
        return ended

    def _wait(self, pod: Object, process: subprocess.Popen, cgroup: Cgroup) -> int:
        asked = None
        while True:
            try:
                code = process.wait(0.05)
            except subprocess.TimeoutExpired:
                if self.closing.is_set():
                    cgroup.kill()
                if asked is None and self._gone(pod):
                    asked = time.monotonic()
                    for pid in cgroup.pids():
                        os.kill(pid, signal.SIGTERM)
                found = self.store.find(
                    "pods", pod["metadata"]["namespace"], pod["metadata"]["name"]
                )
                grace = (found or {}).get("metadata", {}).get("deletionGracePeriodSeconds", 30)
                if found is None or (asked and time.monotonic() > asked + grace):
                    cgroup.kill()
            else:
                return 128 - code if code < 0 else code

    def _script(self, pod: Object, main: Object, home: Path, cgroup: Cgroup) -> str:
        account = home / "serviceaccount"
        self.credentials(account, pod)  # type: ignore[operator]
        (home / "termination-log").touch()
        lines = [f"echo $$ > {cgroup.path}/cgroup.procs", f"hostname {pod['metadata']['name']}"]
        for target in (Path(SERVICE_ACCOUNT),):
            target.mkdir(parents=True, exist_ok=True)
        lines.append(f"mount --bind {account} {SERVICE_ACCOUNT}")
        (home / "app").mkdir()
        Path("/app").mkdir(exist_ok=True)  # ZenML unpacks code there; each pod has its own
        lines.append(f"mount --bind {home}/app /app")
        lines.append(f"mount --bind {cgroup.path} {V1 if cgroup.is_v1 else V2}")
        termination = Path("/dev/termination-log")
        termination.touch()
        lines.append(f"mount --bind {home}/termination-log {termination}")
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for mount in main.get("volumeMounts", []):
            volume, target = volumes[mount["name"]], mount["mountPath"]
            if "projected" in volume:
                continue
            lines.append(f"mkdir -p {target}")
            lines.append(self._mount(volume, target, home))
        command = [*main.get("command", []), *main.get("args", [])]
        return " && ".join([*lines, "exec " + " ".join(map(_quote, command))])

    def _mount(self, volume: Object, target: str, home: Path) -> str:
        if "emptyDir" in volume:
            size = volume["emptyDir"].get("sizeLimit")
            if volume["emptyDir"].get("medium") == "Memory":
                option = f"-o size={int(quantity(size))}" if size else ""
                return f"mount -t tmpfs {option} tmpfs {target}"
            source = home / "volumes" / volume["name"]
        elif "hostPath" in volume:
            source = Path(volume["hostPath"]["path"])
        else:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName", volume["name"])
            source = self.root / "claims" / claim
        source.mkdir(parents=True, exist_ok=True)
        return f"mount --bind {source} {target}"

    def _environment(self, pod: Object, main: Object) -> dict[str, str]:
        binaries = Path(self.images[main["image"]]).parent
        env = {
            "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOSTNAME": pod["metadata"]["name"],
            "HOME": "/root",
            **self.environment,
        }
        for item in main.get("env", []):
            source = item.get("valueFrom") or {}
            if path := source.get("fieldRef", {}).get("fieldPath"):
                value: object = pod
                for part in path.split("."):
                    value = value[part] if isinstance(value, dict) else ""
                env[item["name"]] = str(value)
            elif "value" in item:
                env[item["name"]] = item["value"]
        return env

    def _waiting(self, main: Object, reason: str) -> Object:
        message = {"message": f"failed to pull image {main['image']}"} if "Pull" in reason else {}
        return self._status(main, {"waiting": {"reason": reason, **message}}, ready=False)

    def _status(self, main: Object, state: Object, *, ready: bool) -> Object:
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
                | (
                    {"readOnly": True, "recursiveReadOnly": "Disabled"}
                    if mount.get("readOnly")
                    else {}
                )
                for mount in main.get("volumeMounts", [])
            ],
        }
        if "waiting" not in state:
            status["containerID"] = state.get("terminated", {}).get("containerID", "containerd://0")
            status["resources"] = main["resources"]
            status["allocatedResources"] = main["resources"].get("requests", {})
            status["user"] = {"linux": {"gid": 0, "supplementalGroups": [0], "uid": 0}}
        return status

    def _set(self, place: str, name: str, phase: str, container: Object) -> None:
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

        self.store.change("pods", place, name, edit)


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


def _quote(text: str) -> str:
    import shlex

    return shlex.quote(text)


def default_images() -> dict[str, str]:
    return {"localhost/zenml:test": sys.executable}


def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="kubedouble-"))
