"""The double as a whole: start it, talk to it with the real client, look at what happened."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import ssl
import threading
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.kubedouble.certificates import make_certificates
from tests.kubedouble.defaults import default_job, default_pod, quantity
from tests.kubedouble.jobs import JobController, is_finished
from tests.kubedouble.nodes import Kubelet, Node, condition, default_images, schedule, scratch
from tests.kubedouble.store import (
    ApiError,
    Object,
    Store,
    matches_fields,
    matches_labels,
    merge,
    now,
)
from typing_extensions import Self

CLUSTER_SCOPED = {"nodes", "namespaces", "clusterroles", "clusterrolebindings"}
KINDS = {
    "jobs": ("batch/v1", "Job"),
    "cronjobs": ("batch/v1", "CronJob"),
    "pods": ("v1", "Pod"),
    "events": ("v1", "Event"),
    "nodes": ("v1", "Node"),
    "secrets": ("v1", "Secret"),
    "limitranges": ("v1", "LimitRange"),
    "resourcequotas": ("v1", "ResourceQuota"),
    "namespaces": ("v1", "Namespace"),
    "serviceaccounts": ("v1", "ServiceAccount"),
    "rolebindings": ("rbac.authorization.k8s.io/v1", "RoleBinding"),
    "persistentvolumeclaims": ("v1", "PersistentVolumeClaim"),
}
PATH = re.compile(
    r"/(?:api/v1|apis/[^/]+/v1)(?:/namespaces/(?P<ns>[^/]+))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>[a-z]+))?"
)


@dataclass(kw_only=True)
class Call:
    """One request the API server has answered."""

    method: str
    plural: str
    name: str
    sub: str
    user: str
    at: float
    code: int = 0

    @property
    def verb(self) -> str:
        if self.method == "GET":
            return "get" if self.name else "list"
        return {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}[
            self.method
        ]

    @property
    def resource(self) -> str:
        return f"{self.plural}/{self.sub}" if self.sub else self.plural


@dataclass(kw_only=True)
class Fault:
    """What goes wrong: `applies` picks the calls, `times` how often."""

    code: int
    reason: str = "InternalError"
    message: str = "injected"
    applies: Callable[[Call], bool] = field(default=lambda _: True)
    times: int = 1
    after: bool = False
    """The request is carried out first, and its answer lost."""
    hang_s: float = 0


class Cluster:
    """A Kubernetes with one API server and any number of nodes, in this process."""

    def __init__(
        self,
        nodes: dict[str, str] | None = None,
        *,
        real: bool = True,
        backoff_s: float = 0.3,
        images: dict[str, str] | None = None,
        tls: bool = True,
    ) -> None:
        self.store = Store()
        self.root = scratch()
        self.kubelet = Kubelet(self.store, self.root, images or default_images(), real=real)
        self.jobs = JobController(self.store, backoff_s, self.admit_pod)
        self.calls: list[Call] = []
        self.faults: list[Fault] = []
        self.denied: Callable[[str, str, str], bool] = lambda user, verb, resource: False
        self.tokens: dict[str, str] = {"admin": "admin"}
        self.stopping = threading.Event()
        self.pause_jobs = threading.Event()
        self.on_call: Callable[[Call], None] = lambda call: None
        for name, allocatable in (nodes or {"node-a": "8Gi"}).items():
            self.kubelet.nodes[name] = Node(name, allocatable, real=real)
            self.store.create("nodes", "", self.kubelet.nodes[name].manifest())
        for name in ("default", "zenml"):
            self.store.create("namespaces", "", {"kind": "Namespace", "metadata": {"name": name}})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.tls = tls
        if tls:
            self.ca, certificate, key = make_certificates(self.root / "pki")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            self.server.socket = context.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = self.server.server_address[1]
        self.kubelet.credentials = self.write_credentials
        self.kubelet.environment = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self.port),
        }

    def __enter__(self) -> Self:
        for target in (self.server.serve_forever, self._loop):
            threading.Thread(target=target, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.kubelet.closing.set()
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
        shutil.rmtree(self.root, ignore_errors=True)

    # -- what tests use ---------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

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

    # -- admission --------------------------------------------------------------------------

    def admit_pod(self, namespace: str, pod: Object) -> None:
        name = pod["metadata"]["name"]
        for limit_range in self.store.select("limitranges", namespace):
            for item in limit_range["spec"]["limits"]:
                self._apply_limit_range(item, pod, name)
        for quota in self.store.select("resourcequotas", namespace):
            for key, hard in quota["spec"]["hard"].items():
                kind, _, resource = key.rpartition(".")
                if resource != "memory":
                    continue
                section = "limits" if kind == "limits" else "requests"
                asked = _total(pod, section)
                used = sum(
                    _total(other, section)
                    for other in self.store.select("pods", namespace)
                    if other["status"]["phase"] in {"Pending", "Running"}
                )
                if used + asked > quantity(hard):
                    raise ApiError(
                        403,
                        "Forbidden",
                        f'pods "{name}" is forbidden: exceeded quota: {quota["metadata"]["name"]},'
                        f" requested: {key}={_short(asked)}, used: {key}={_short(used)},"
                        f" limited: {key}={hard}",
                    )

    @staticmethod
    def _apply_limit_range(item: Object, pod: Object, name: str) -> None:
        for container in pod["spec"]["containers"]:
            resources = container["resources"]
            for section, key in (("limits", "default"), ("requests", "defaultRequest")):
                for resource, value in (item.get(key) or {}).items():
                    resources.setdefault(section, {}).setdefault(resource, value)
            most = (item.get("max") or {}).get("memory")
            limit = (resources.get("limits") or {}).get("memory")
            if most and limit and quantity(limit) > quantity(most):
                raise ApiError(
                    403,
                    "Forbidden",
                    f'pods "{name}" is forbidden: maximum memory usage per Container is {most},'
                    f" but limit is {limit}",
                )

    # -- loops ------------------------------------------------------------------------------

    def _loop(self) -> None:
        """Controllers look again whenever something changed, and twice a second anyhow."""
        seen = -1
        while not self.stopping.is_set():
            with self.store.lock:
                if self.store.version == seen:
                    self.store.lock.wait(0.1)
                seen = self.store.version
            with contextlib.suppress(ApiError):
                self._pass()

    def _pass(self) -> None:
        unfinished = [
            job
            for job in self.store.select("jobs")
            if not is_finished(job) and not job["metadata"].get("deletionTimestamp")
        ]
        for job in unfinished:
            if not self.pause_jobs.is_set():
                self.jobs.sync(job)
        pods = self.store.select("pods")
        nodes = self.store.select("nodes")
        for pod in pods:
            meta = pod["metadata"]
            is_kept = bool(meta.get("finalizers")) and self._job_of(pod)
            if (
                meta.get("deletionTimestamp")
                and meta["uid"] not in self.kubelet.running
                and (not is_kept or pod["status"]["phase"] == "Pending")
            ):
                self.store.remove("pods", meta["namespace"], meta["name"])
        live = [pod for pod in pods if pod["status"]["phase"] in {"Pending", "Running"}]
        for pod in live:
            meta = pod["metadata"]
            if meta.get("deletionTimestamp"):
                continue
            if "nodeName" not in pod["spec"]:
                self._schedule(pod, nodes, live)
            elif meta["uid"] not in self.kubelet.started:
                self.kubelet.start(pod)

    def _job_of(self, pod: Object) -> bool:
        """Whether the Job that keeps the pod is still there and wants to count it."""
        for owner in pod["metadata"].get("ownerReferences") or []:
            job = self.store.find("jobs", pod["metadata"]["namespace"], owner["name"])
            return job is not None and not is_finished(job)
        return False

    def _schedule(self, pod: Object, nodes: list[Object], pods: list[Object]) -> None:
        name, why = schedule(pod, nodes, pods)

        def edit(obj: Object) -> None:
            if name:
                obj["spec"]["nodeName"] = name
                stamp = condition("PodScheduled", True)
            else:
                stamp = condition("PodScheduled", False, "Unschedulable", why)
            old = obj["status"].get("conditions", [])
            if [c.get("message") for c in old if c["type"] == "PodScheduled"] == [why]:
                return
            obj["status"]["conditions"] = [
                *(c for c in old if c["type"] != "PodScheduled"),
                stamp,
            ]

        changed = self.store.change(
            "pods", pod["metadata"]["namespace"], pod["metadata"]["name"], edit
        )
        if name and changed:
            pod["spec"]["nodeName"] = name
            self.kubelet.start(changed)

    # -- HTTP -------------------------------------------------------------------------------

    def _handler(cluster) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - the handler has its own self
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
                length = int(self.headers.get("Content-Length") or 0)
                raw = self.rfile.read(length) if length else b""
                body = json.loads(raw) if raw else None
                try:
                    found = cluster.answer(self, url.path, query, body)
                except ApiError as error:
                    found = (error.code, error.status())
                if found is None:
                    return
                code, payload = found
                data = (
                    payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
                )
                kind = "text/plain" if isinstance(payload, str) else "application/json"
                self.send_response(code)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(data)

            do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _answer  # noqa: N815

        return Handler

    def answer(
        self, request: BaseHTTPRequestHandler, path: str, query: dict[str, str], body: Object | None
    ) -> tuple[int, Object | str] | None:
        if path == "/version":
            return 200, {"major": "1", "minor": "36", "gitVersion": "v1.36.2"}
        parsed = PATH.fullmatch(path)
        if not parsed:
            raise ApiError(404, "NotFound", f"no such path: {path}")
        plural, name, sub = parsed["plural"], parsed["name"] or "", parsed["sub"] or ""
        place = parsed["ns"] or ""
        if plural == "namespaces" and not name and place:
            name, place = place, ""
        token = (request.headers.get("Authorization") or "").partition(" ")[2]
        user = self.tokens.get(token, "")
        call = Call(
            method=request.command,
            plural=plural,
            name=name,
            sub=sub,
            user=user,
            at=time.monotonic(),
        )
        self.calls.append(call)
        self.on_call(call)
        fault = self._fault(call)
        if fault and not fault.after:
            self.stopping.wait(fault.hang_s)
            call.code = fault.code
            raise ApiError(fault.code, fault.reason, fault.message)
        if not user:
            call.code = 401
            raise ApiError(401, "Unauthorized", "Unauthorized")
        if self.denied(user, call.verb, call.resource):
            call.code = 403
            raise ApiError(
                403,
                "Forbidden",
                f'{plural} "{name}" is forbidden: User "system:serviceaccount:{place}:{user}"'
                f' cannot {call.verb} resource "{call.resource}" in API group ""',
            )
        try:
            found = self._serve(request, call, place, query, body or {})
        except ApiError as error:
            call.code = error.code
            raise
        call.code = found[0] if found else 200
        if fault:
            self.stopping.wait(fault.hang_s)
            raise ApiError(fault.code, fault.reason, fault.message)
        return found

    def _fault(self, call: Call) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.applies(call):
                fault.times -= 1
                return fault
        return None

    def _serve(  # noqa: PLR0911
        self,
        request: BaseHTTPRequestHandler,
        call: Call,
        place: str,
        query: dict[str, str],
        body: Object,
    ) -> tuple[int, Object | str] | None:
        plural, name = call.plural, call.name
        version, kind = KINDS.get(plural, ("v1", plural.title()))
        if call.verb == "list":
            if query.get("watch") in {"true", "True", "1"}:
                self._watch(request, plural, place, query)
                return None
            items = self.store.select(
                plural, place, query.get("labelSelector", ""), query.get("fieldSelector", "")
            )
            meta = {"resourceVersion": str(self.store.version)}
            return 200, {
                "apiVersion": version,
                "kind": f"{kind}List",
                "metadata": meta,
                "items": items,
            }
        if call.verb == "get":
            if call.sub == "log":
                pod = self.store.get(plural, place, name)
                path = self.kubelet.log_path(pod)
                return 200, path.read_text(errors="replace") if path.exists() else ""
            return 200, self.store.get(plural, place, name)
        if call.verb == "create":
            return 201, self._create(plural, place, {"apiVersion": version, "kind": kind, **body})
        if call.verb == "patch":
            return 200, self._patch(request, call, place, body)
        if call.verb == "update":
            self.store.change(plural, place, name, lambda obj: obj.update(body))
            return 200, self.store.get(plural, place, name)
        return 200, self._delete(plural, place, name, {**query, **body})

    def _create(self, plural: str, place: str, obj: Object) -> Object:
        if plural not in CLUSTER_SCOPED and self.store.find("namespaces", "", place) is None:
            raise ApiError(404, "NotFound", f'namespaces "{place}" not found')
        if plural == "jobs":
            default_job(obj)
            for owner in obj["metadata"].get("ownerReferences") or []:
                owner.setdefault("apiVersion", "v1")
        elif plural == "pods":
            default_pod(obj, "kube-api-access-bare")
            self.admit_pod(place, obj)
        elif plural == "events":
            obj.setdefault("involvedObject", {})
        return self.store.create(plural, place, obj)

    def _patch(
        self, request: BaseHTTPRequestHandler, call: Call, place: str, body: Object
    ) -> Object:
        strategic = "strategic" in (request.headers.get("Content-Type") or "")
        current = self.store.get(call.plural, place, call.name)
        if call.plural == "jobs" and "template" in (body.get("spec") or {}):
            raise ApiError(422, "Invalid", "spec.template: field is immutable")
        if call.sub == "resize":
            return self._resize(current, body)
        if call.plural == "pods" and "containers" in (body.get("spec") or {}):
            raise ApiError(422, "Invalid", "spec: pod updates may not change these fields")

        def edit(obj: Object) -> None:
            merged = merge(obj, body, strategic=strategic)
            obj.clear()
            obj.update(merged)  # type: ignore[call-overload]

        del current
        changed = self.store.change(call.plural, place, call.name, edit)
        assert changed
        return changed

    def _resize(self, pod: Object, body: Object) -> Object:
        meta = pod["metadata"]
        wanted = body["spec"]["containers"][0]
        node = self.kubelet.nodes[pod["spec"]["nodeName"]]
        others = sum(
            quantity((c["resources"].get("requests") or {}).get("memory", 0))
            for other in self.store.select("pods")
            if other["metadata"]["uid"] != meta["uid"]
            and other["spec"].get("nodeName") == node.name
            and other["status"]["phase"] in {"Pending", "Running"}
            for c in other["spec"]["containers"]
        )
        asked = (wanted["resources"].get("requests") or {}).get("memory", 0)
        if quantity(asked) > quantity(node.allocatable):
            raise ApiError(
                403,
                "Forbidden",
                f'pods "{meta["name"]}" is forbidden: node didn\'t have enough allocatable resources',
            )
        fits = others + quantity(asked) <= quantity(node.allocatable)
        if fits and (cgroup := self.kubelet.cgroups.get(meta["uid"])):
            cgroup.limit(quantity(wanted["resources"]["limits"]["memory"]))

        def edit(obj: Object) -> None:
            obj["metadata"]["generation"] += 1
            for container in obj["spec"]["containers"]:
                if container["name"] == wanted["name"]:
                    container["resources"] = merge(
                        container["resources"], wanted["resources"], strategic=True
                    )
            if not fits:
                obj["status"].setdefault("conditions", []).append(
                    condition(
                        "PodResizePending", True, "Deferred", "Node didn't have enough resource"
                    )
                )

        changed = self.store.change("pods", meta["namespace"], meta["name"], edit)
        assert changed
        return changed

    def _delete(self, plural: str, place: str, name: str, options: dict[str, Any]) -> Object:
        obj = self.store.get(plural, place, name)
        if plural == "pods":
            grace = options.get("gracePeriodSeconds")
            if grace is None:
                grace = obj["spec"].get("terminationGracePeriodSeconds", 30)

            def edit(pod: Object) -> None:
                pod["metadata"]["deletionTimestamp"] = now()
                pod["metadata"]["deletionGracePeriodSeconds"] = int(grace)

            self.store.change(plural, place, name, edit)
            if int(grace) == 0:
                self.store.remove(plural, place, name)
            return obj
        self.store.remove(plural, place, name)
        if options.get("propagationPolicy") != "Orphan":
            self._collect(obj)
        return obj

    def _collect(self, owner: Object) -> None:
        """Garbage collection: what the deleted object owned goes, too."""
        uid = owner["metadata"]["uid"]
        for plural in ("pods", "jobs"):
            for obj in self.store.select(plural):
                owners = obj["metadata"].get("ownerReferences") or []
                if owners and all(reference["uid"] == uid for reference in owners):
                    meta = obj["metadata"]
                    with contextlib.suppress(ApiError):
                        self._delete(plural, meta["namespace"], meta["name"], {})

    def _watch(
        self, request: BaseHTTPRequestHandler, plural: str, place: str, query: dict[str, str]
    ) -> None:
        request.send_response(200)
        request.send_header("Content-Type", "application/json")
        request.send_header("Connection", "close")
        request.end_headers()
        request.close_connection = True
        version = int(query.get("resourceVersion") or 0)
        deadline = time.monotonic() + float(query.get("timeoutSeconds", 60))
        while time.monotonic() < deadline and not self.stopping.is_set():
            for number, kind, obj in self.store.events_since(version, 0.5, plural):
                version = number
                if place and obj["metadata"].get("namespace") != place:
                    continue
                labels = obj["metadata"].get("labels") or {}
                if not matches_labels(query.get("labelSelector", ""), labels):
                    continue
                if not matches_fields(query.get("fieldSelector", ""), obj):
                    continue
                line = json.dumps({"type": kind, "object": obj}) + "\n"
                try:
                    request.wfile.write(line.encode())
                    request.wfile.flush()
                except OSError:
                    return


def _total(pod: Object, section: str) -> float:
    return sum(
        quantity((container["resources"].get(section) or {}).get("memory", 0))
        for container in pod["spec"]["containers"]
    )


def _short(size: float) -> str:
    mib = size / (1 << 20)
    return f"{mib:.0f}Mi" if mib == int(mib) else str(int(size))


__all__ = ["Call", "Cluster", "Fault"]
