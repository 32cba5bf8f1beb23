"""What the API does with objects: read, watch, create, patch, resize, delete."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.doubles.kubernetes.admission import admit_pod
from tests.doubles.kubernetes.calls import Call
from tests.doubles.kubernetes.defaults import default_job, default_pod
from tests.doubles.kubernetes.kubelet import Kubelet
from tests.doubles.kubernetes.pod_status import condition
from tests.doubles.kubernetes.selectors import matches_fields, matches_labels
from tests.doubles.kubernetes.store import ApiError, Object, Store, merge, now

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


class Resources:
    """Carries out the requests that were let through."""

    def __init__(self, store: Store, kubelet: Kubelet) -> None:
        self.store, self.kubelet = store, kubelet
        self.stopping = threading.Event()

    def serve(  # noqa: PLR0911
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
        if call.sub == "eviction":
            return 201, self.evict(place, name, body)
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
            admit_pod(self.store, place, obj)
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
            return self.kubelet.resizes.ask(current, body)
        if call.plural == "pods" and "containers" in (body.get("spec") or {}):
            raise ApiError(422, "Invalid", "spec: pod updates may not change these fields")

        def edit(obj: Object) -> None:
            merged = merge(obj, body, strategic=strategic)
            obj.clear()
            obj.update(merged)  # type: ignore[call-overload]

        changed = self.store.change(call.plural, place, call.name, edit)
        assert changed
        return changed

    def evict(self, place: str, name: str, body: Object) -> Object:
        """What a drain asks for: the pod is a target of a disruption, and then deleted."""
        words = "Eviction API: evicting"
        stamp = condition("DisruptionTarget", True, "EvictionByEvictionAPI", words)
        self.store.change(
            "pods",
            place,
            name,
            lambda pod: pod["status"].setdefault("conditions", []).append(stamp),
        )
        self._delete("pods", place, name, body.get("deleteOptions") or {})
        return {"apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Success"}

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
            version, changes = self.store.events_since(version, 0.5, plural)
            for kind, obj in changes:
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
