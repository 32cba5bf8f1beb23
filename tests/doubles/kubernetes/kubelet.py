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
from dataclasses import dataclass
from pathlib import Path

from tests.doubles.kubernetes.cgroups import UNSHARE, V1, V2, Cgroup
from tests.doubles.kubernetes.defaults import quantity
from tests.doubles.kubernetes.pod_status import container_status, set_phase, waiting
from tests.doubles.kubernetes.scheduler import Node
from tests.doubles.kubernetes.store import Object, Store, now

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"


@dataclass(kw_only=True)
class Pretence:
    """How a pod without a process ends, and when."""

    pod: Object
    ended: Object
    due: float


class Kubelet:
    """Runs pods. With real=False a pod ends as its annotations say, without a process:
    ``double/ends`` holds "exit-code reason seconds", one for each attempt, with semicolons."""

    def __init__(self, store: Store, root: Path, images: dict[str, str], *, real: bool) -> None:
        self.store, self.root, self.images, self.real = store, root, images, real
        self.nodes: dict[str, Node] = {}
        self.cgroups: dict[str, Cgroup] = {}
        self.started: set[str] = set()
        self.running: set[str] = set()
        self.pretended: dict[str, Pretence] = {}
        self.closing = threading.Event()
        self.credentials: object = None
        self.environment: dict[str, str] = {}
        self.runs: list[tuple[str, str, float, float]] = []  # label step_name, pod, start, end

    def start(self, pod: Object) -> None:
        uid, main = pod["metadata"]["uid"], pod["spec"]["containers"][0]
        if uid in self.started:
            return
        self.started.add(uid)
        if self.real and main["image"] not in self.images:
            set_phase(self.store, pod, "Pending", waiting(main, "ErrImagePull"))
            return
        set_phase(self.store, pod, "Pending", waiting(main, "ContainerCreating"))
        self.running.add(uid)
        if self.real:
            threading.Thread(target=self._run, args=(pod, main), daemon=True).start()
        else:
            self._pretend(pod, main)

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
            state = container_status(main, {"terminated": ended}, ready=False)
            set_phase(self.store, pod, phase, state)
        self.running.discard(pod["metadata"]["uid"])

    def _pretend(self, pod: Object, main: Object) -> None:
        ends = (pod["metadata"].get("annotations") or {}).get("double/ends", "0 Completed 0")
        attempt = int(pod["metadata"]["labels"].get("mlops-ext.io/attempt", 1))
        chosen = ends.split(";")
        code, reason, seconds = chosen[min(attempt, len(chosen)) - 1].split()[:3]
        self._running(pod, main)
        ended = {"exitCode": int(code), "reason": reason}
        self.pretended[pod["metadata"]["uid"]] = Pretence(
            pod=pod, ended=ended, due=time.monotonic() + float(seconds)
        )

    def end_pretended(self) -> None:
        """End the pods whose time has come, or that were asked to end."""
        for uid, one in list(self.pretended.items()):
            is_due = time.monotonic() >= one.due
            if is_due or self._gone(one.pod):
                del self.pretended[uid]
                ended = one.ended if is_due else {"exitCode": 137, "reason": "Error"}
                self._end(one.pod, one.pod["spec"]["containers"][0], ended)

    def _gone(self, pod: Object) -> bool:
        found = self.store.find("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
        return found is None or bool(found["metadata"].get("deletionTimestamp"))

    def _running(self, pod: Object, main: Object) -> str:
        stamp = now()
        state = container_status(main, {"running": {"startedAt": stamp}}, ready=True)
        set_phase(self.store, pod, "Running", state)
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
