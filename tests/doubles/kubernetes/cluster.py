"""The double as a whole: start it, talk to it with the real client, look at what happened."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.doubles.kubernetes import clock
from tests.doubles.kubernetes.admission import admit_pod
from tests.doubles.kubernetes.controllers import Controllers
from tests.doubles.kubernetes.jobs import JobController
from tests.doubles.kubernetes.kubelet import Kubelet, default_images, scratch
from tests.doubles.kubernetes.pod_status import condition
from tests.doubles.kubernetes.resources import Resources
from tests.doubles.kubernetes.scheduler import CORDON, Node
from tests.doubles.kubernetes.server import ApiServer
from tests.doubles.kubernetes.store import Object, Store, now
from typing_extensions import Self

REAPER = Path(__file__).with_name("reaper.py")


class Cluster(ApiServer):
    """A Kubernetes with one API server and any number of nodes, in this process.

    A *stepped* one has no threads and no socket: `direct_client` talks to it, and only `settle`
    moves it on.
    """

    def __init__(
        self,
        nodes: dict[str, str | dict] | None = None,
        *,
        real: bool = True,
        backoff_s: float = 0.3,
        images: dict[str, str] | None = None,
        tls: bool = True,
        stepped: bool = False,
    ) -> None:
        self.stepped, self.clock = stepped, clock.VirtualClock()
        self.beside: list[Callable[[], None]] = []
        """What else is to happen whenever a stepped cluster settles."""
        self.store = Store()
        self.root = scratch()
        self.kubelet = Kubelet(self.store, self.root, images or default_images(), real=real)
        super().__init__(Resources(self.store, self.kubelet), self.root / "pki", tls=tls)
        admit = functools.partial(admit_pod, self.store)
        jobs = JobController(self.store, backoff_s, admit)
        self.controllers = Controllers(self.store, self.kubelet, jobs, self.stopping)
        self.pause_jobs = self.controllers.pause_jobs
        for name, found in (nodes or {"node-a": "8Gi"}).items():
            options = found if isinstance(found, dict) else {"memory": found}
            self.add_node(name, **options)
        for name in ("default", "zenml"):
            self.store.create("namespaces", "", {"kind": "Namespace", "metadata": {"name": name}})
        self.kubelet.credentials = self.write_credentials
        self.kubelet.environment = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self.port),
        }

    def __enter__(self) -> Self:
        if self.stepped:
            self.lives_in = clock.using(self.clock)
            self.lives_in.__enter__()
            return self
        groups = [str(node.cgroup.path) for node in self.kubelet.nodes.values() if node.cgroup]
        # It waits for the end of this process, so that no pod outlives it.
        self.reaper = subprocess.Popen(
            [sys.executable, "-IS", str(REAPER), *groups],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        for target in (self.server.serve_forever, self.controllers.run):
            threading.Thread(target=target, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.kubelet.closing.set()
        if self.stepped:
            self.lives_in.__exit__(None, None, None)
        else:
            self.server.shutdown()
        self.server.server_close()
        for cgroup in list(self.kubelet.cgroups.values()):
            cgroup.kill()
        for _ in range(100):
            if not self.kubelet.cgroups:
                break
            time.sleep(0.05)
        for node in self.kubelet.nodes.values():
            if node.cgroup:
                node.cgroup.remove()
        if not self.stepped:
            self.reaper.communicate()
        shutil.rmtree(self.root, ignore_errors=True)

    def kubeconfig(self) -> Path:
        """A kubeconfig of the administrator, context ``double``."""
        path = self.root / "kubeconfig"
        cluster: dict[str, str] = {"server": self.url}
        if self.tls:
            cluster["certificate-authority"] = str(self.ca)
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "double", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": "admin"}}],
            "contexts": [{"name": "double", "context": {"cluster": "double", "user": "admin"}}],
            "current-context": "double",
        }
        path.write_text(json.dumps(config))
        return path

    def write_credentials(self, folder: Path, pod: Object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        account = pod["spec"].get("serviceAccountName", "default")
        token = f"token-{account}"
        self.tokens[token] = account
        (folder / "token").write_text(token)
        (folder / "namespace").write_text(pod["metadata"]["namespace"])
        if self.tls:
            (folder / "ca.crt").write_text(Path(self.ca).read_text())

    def wait_for(self, holds: Callable[[], Any], timeout_s: float = 60) -> Any:
        """What *holds* returns once it is truthy; it is asked whenever an object changes."""
        deadline = time.monotonic() + timeout_s
        with self.store.lock:
            while True:
                if found := holds():
                    return found
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError("the double never came to the awaited state")
                self.store.lock.wait(min(left, 0.5))

    def list(self, plural: str, labels: str = "", namespace: str = "") -> list[Object]:
        return self.store.select(plural, namespace, labels)

    def logs(self) -> str:
        """Every pod's output, for a test's failure message."""
        paths = sorted((self.root / "logs").glob("*.log"))
        parts = [f"== {path.stem}\n{path.read_text(errors='replace')}" for path in paths]
        return "\n".join(parts)

    def settle(self) -> None:
        """Carry out what is due now, in a cluster that is stepped."""
        for one in self.beside:
            one()
        self.controllers.settle()
        self.store.log.clear()  # nobody watches

    def pass_time(self, seconds: float, step: float = 1.0) -> None:
        """Let *seconds* of the virtual clock pass, in steps of *step*."""
        while seconds > 0:
            self.clock.seconds += min(step, seconds)
            seconds -= step
            self.settle()

    def add_node(self, name: str, memory: str, **options: Any) -> None:
        """A node that is ready; *options* are those of `Node`."""
        self.kubelet.nodes[name] = Node(name, memory, real=self.kubelet.real, **options)
        self.store.create("nodes", "", self.kubelet.nodes[name].manifest())

    def remove_node(self, name: str) -> None:
        """A node that is gone for good; the garbage collector fails its pods, and deletes them."""
        self.store.remove("nodes", "", name)
        del self.kubelet.nodes[name]
        words = "PodGC: node no longer exists"
        stamp = condition("DisruptionTarget", True, "DeletionByPodGC", words)

        def edit(pod: Object) -> None:
            if pod["status"]["phase"] in {"Pending", "Running"}:
                pod["status"].setdefault("conditions", []).append(stamp)
                pod["status"]["phase"] = "Failed"
            pod["metadata"].setdefault("deletionTimestamp", now())

        for pod in self.list("pods"):
            if pod["spec"].get("nodeName") == name:
                meta = pod["metadata"]
                self.kubelet.pretender.pods.pop(meta["uid"], None)
                self.kubelet.over(pod)
                self.store.change("pods", meta["namespace"], meta["name"], edit)

    def taint(self, name: str, taint: Object, *, on: bool = True) -> None:
        """Put a taint on a node, or take it away; that of a cordon cordons it."""

        def edit(node: Object) -> None:
            others = [one for one in node["spec"].get("taints", []) if one != taint]
            node["spec"]["taints"] = [*others, *([taint] if on else [])]
            if taint == CORDON:
                node["spec"]["unschedulable"] = on

        self.store.change("nodes", "", name, edit)

    def drain(self, name: str) -> None:
        """What ``kubectl drain`` does: no new pods, and the eviction of those that are there."""
        self.taint(name, CORDON)
        for pod in self.list("pods"):
            is_live = pod["status"]["phase"] in {"Pending", "Running"}
            owners = {one["kind"] for one in pod["metadata"].get("ownerReferences", [])}
            if pod["spec"].get("nodeName") == name and is_live and "DaemonSet" not in owners:
                self.resources.evict(pod["metadata"]["namespace"], pod["metadata"]["name"], {})

    def evict(self, pod: Object, message: str) -> None:
        """What a kubelet under node pressure does to a pod."""
        stamp = condition("DisruptionTarget", True, "TerminationByKubelet", message)

        def edit(obj: Object) -> None:
            obj["status"].setdefault("conditions", []).append(stamp)
            obj["status"] |= {"reason": "Evicted", "message": message}

        meta = pod["metadata"]
        self.store.change("pods", meta["namespace"], meta["name"], edit)
        if cgroup := self.kubelet.cgroups.get(meta["uid"]):
            cgroup.kill()
