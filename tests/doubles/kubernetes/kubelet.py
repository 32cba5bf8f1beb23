"""The kubelet: pods become processes under real memory limits, or end as they were told to."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from pathlib import Path

from tests.doubles.kubernetes.cgroups import UNSHARE, V1, V2, Cgroup
from tests.doubles.kubernetes.defaults import quantity
from tests.doubles.kubernetes.pod_status import reject, set_phase, waiting
from tests.doubles.kubernetes.pretence import Pretender
from tests.doubles.kubernetes.resizes import Resizes
from tests.doubles.kubernetes.scheduler import AFFINITY, Node, selected
from tests.doubles.kubernetes.sizes import total
from tests.doubles.kubernetes.store import Object, Store, now

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


class Kubelet:
    """Runs the step's container of pods; with real=False a pod ends as its annotations say."""

    def __init__(self, store: Store, root: Path, images: dict[str, str], *, real: bool) -> None:
        self.store, self.root, self.images, self.real = store, root, images, real
        self.nodes: dict[str, Node] = {}
        self.cgroups: dict[str, Cgroup] = {}
        self.started: set[str] = set()
        self.running: set[str] = set()
        self.pretender = Pretender(store, self)
        self.resizes = Resizes(store, self)
        self.ghosts: dict[str, str] = {}
        """By node, memory of pods that the scheduler believes to be gone."""
        self.bound: dict[str, Object] = {}  # by uid, the pods that the nodes have taken
        self.closing = threading.Event()
        self.credentials: object = None
        self.environment: dict[str, str] = {}
        self.runs: list[tuple[str, str, float, float]] = []  # label step_name, pod, start, end

    def start(self, pod: Object) -> None:
        uid, main = pod["metadata"]["uid"], pod["spec"]["containers"][0]
        if uid in self.started:
            return
        self.started.add(uid)
        if refusal := self._refusal(pod):
            reject(self.store, pod, *refusal)
            return
        self.bound[uid] = pod
        self.resizes.admitted(pod)
        if self.real and main["image"] not in self.images:
            set_phase(self.store, pod, "Pending", {main["name"]: waiting(main, "ErrImagePull")})
            return
        creating = waiting(main, "ContainerCreating")
        if not pod["spec"].get("initContainers"):
            set_phase(self.store, pod, "Pending", {main["name"]: creating})
        self.running.add(uid)
        if self.real:
            threading.Thread(target=self._run, args=(pod, main), daemon=True).start()
        else:
            self.pretender.start(pod)

    def pod(self, uid: str) -> Object | None:
        """A pod that a node has taken, as it stands."""
        meta = self.bound[uid]["metadata"] if uid in self.bound else None
        return self.store.find("pods", meta["namespace"], meta["name"]) if meta else None

    def over(self, pod: Object) -> None:
        """Forget a pod that has ended."""
        uid = pod["metadata"]["uid"]
        self.running.discard(uid)
        self.bound.pop(uid, None)
        self.resizes.forget(uid)

    def lacks(self, pod: Object, resource: str) -> str:
        """Why the pod's node has no room for what it asks for now; "" if it has."""
        node = pod["spec"]["nodeName"]
        others = [
            other
            for uid in self.bound
            if uid != pod["metadata"]["uid"]
            and (other := self.pod(uid))
            and other["spec"]["nodeName"] == node
        ]
        ghosts = quantity(self.ghosts.get(node, 0)) if resource == "memory" else 0
        if resource == "pods":
            asked, used = 1.0, float(len(others))
        else:
            asked = total(pod, "requests", resource)
            used = ghosts + sum(self._allocated(other, resource) for other in others)
        found = self.nodes.get(node)
        has = quantity(found.allocatable[resource]) if found else 0
        if used + asked <= has:
            return ""
        scale = 1000 if resource == "cpu" else 1
        return (
            f"Node didn't have enough resource: {resource}, requested: {asked * scale:.0f},"
            f" used: {used * scale:.0f}, capacity: {has * scale:.0f}"
        )

    def _allocated(self, pod: Object, resource: str) -> float:
        """What its node has set aside for a pod, whatever it wishes."""
        given = self.resizes.allocated.get(pod["metadata"]["uid"], {})
        containers = [
            {**one, "resources": given.get(one["name"], one["resources"])}
            for one in pod["spec"]["containers"]
        ]
        return total({"spec": {**pod["spec"], "containers": containers}}, "requests", resource)

    def _refusal(self, pod: Object) -> tuple[str, str] | None:
        """Why the kubelet does not take a pod that is bound to it, or None."""
        for resource in ("cpu", "memory", "pods"):
            if why := self.lacks(pod, resource):
                return f"OutOf{resource}", why
        node = self.store.find("nodes", "", pod["spec"]["nodeName"])
        if node is not None and not selected(pod, node):
            return "NodeAffinity", f"Predicate NodeAffinity failed: {AFFINITY}"
        return None

    def set_limits(self, uid: str, allocated: dict[str, Object]) -> None:
        """A resize takes effect."""
        for name, resources in allocated.items():
            limit = (resources.get("limits") or {}).get("memory")
            one = self.pretender.pods.get(uid)
            if limit and one and one.main["name"] == name:
                one.limit = quantity(limit)
            if limit and (cgroup := self.cgroups.get(uid)):
                cgroup.limit(quantity(limit))

    def log_path(self, pod: Object) -> Path:
        return self.root / "logs" / f"{pod['metadata']['uid']}.log"

    def _run(self, pod: Object, main: Object) -> None:
        try:
            ended = self._process(pod, main)
        except Exception as error:
            ended = {"exitCode": 128, "reason": "StartError", "message": str(error)}
        self._end(pod, main, ended)

    def _end(self, pod: Object, main: Object, ended: Object) -> None:
        ended |= {"containerID": f"containerd://{uuid.uuid4().hex * 2}", "finishedAt": now()}
        ended.setdefault("startedAt", now())
        phase = "Succeeded" if ended["exitCode"] == 0 else "Failed"
        if not self.closing.is_set():
            set_phase(self.store, pod, phase, {main["name"]: {"terminated": ended}})
        self.over(pod)

    def gone(self, pod: Object) -> bool:
        found = self.store.find("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
        if found is None or found["status"].get("reason") == "Evicted":
            return True
        return bool(found["metadata"].get("deletionTimestamp"))

    def _running(self, pod: Object, main: Object) -> str:
        stamp = now()
        set_phase(self.store, pod, "Running", {main["name"]: {"running": {"startedAt": stamp}}})
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
                [*UNSHARE, "/bin/sh", "-c", script],
                env=self._environment(pod, main, home),
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
                if asked is None and self.gone(pod):
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
        return " && ".join([*lines, "exec " + " ".join(map(shlex.quote, command))])

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

    def _environment(self, pod: Object, main: Object, home: Path) -> dict[str, str]:
        binaries = Path(self.images[main["image"]]).parent
        env = {
            "PATH": f"{binaries}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOSTNAME": pod["metadata"]["name"],
            "HOME": str(home),  # what a pod keeps at home goes with it
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


def default_images() -> dict[str, str]:
    return {"localhost/zenml:test": sys.executable}


def scratch() -> Path:
    return Path(tempfile.mkdtemp(prefix="kubedouble-"))
