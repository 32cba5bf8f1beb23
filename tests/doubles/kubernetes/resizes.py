"""What becomes of a wish to resize a pod that runs: admission, and the kubelet of its node."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.doubles.kubernetes import clock
from tests.doubles.kubernetes.admission import apply_limit_ranges, check_quotas
from tests.doubles.kubernetes.defaults import default_container, qos_class, quantity
from tests.doubles.kubernetes.pod_status import condition
from tests.doubles.kubernetes.sizes import total
from tests.doubles.kubernetes.store import ApiError, Object, Store, clone, merge

if TYPE_CHECKING:
    from tests.doubles.kubernetes.kubelet import Kubelet

INFEASIBLE = 'Resize is infeasible for Guaranteed Pods alongside Memory Manager policy "Static"'


class Resizes:
    """The spec of a pod holds what is wished; this is what its kubelet makes of that.

    A node that lacks the room defers; one whose kubelet cannot resize says that it is infeasible;
    any other allocates at once, and has done it *latency* seconds later.
    """

    def __init__(self, store: Store, kubelet: Kubelet) -> None:
        self.store, self.kubelet = store, kubelet
        self.latency: Callable[[str], float] = lambda node: 0.0
        self.infeasible: set[str] = set()
        self.allocated: dict[str, dict[str, Object]] = {}  # pod uid -> container -> resources
        self.due: dict[str, float] = {}

    def admitted(self, pod: Object) -> None:
        """Note what a pod is given as it starts."""
        self.allocated[pod["metadata"]["uid"]] = {
            one["name"]: clone(one["resources"]) for one in pod["spec"]["containers"]
        }

    def forget(self, uid: str) -> None:
        self.allocated.pop(uid, None)
        self.due.pop(uid, None)

    def ask(self, pod: Object, body: Object) -> Object:
        """The API server's side of a patch of the subresource ``resize``."""
        meta = pod["metadata"]
        wanted = clone(pod)
        for change in body["spec"]["containers"]:
            for container in wanted["spec"]["containers"]:
                if container["name"] == change["name"]:
                    container["resources"] = merge(
                        container["resources"], change.get("resources") or {}, strategic=True
                    )
                    default_container(container)
        if wanted["spec"] == pod["spec"]:
            return pod
        if qos_class(wanted["spec"]) != pod["status"]["qosClass"]:
            raise ApiError(422, "Invalid", "Pod QOS Class may not change as a result of resizing")
        node = self.store.find("nodes", "", pod["spec"].get("nodeName", ""))
        asked = total(wanted, "requests")
        if node is not None and asked > (has := quantity(node["status"]["allocatable"]["memory"])):
            raise ApiError(
                403,
                "Forbidden",
                f'pods "{meta["name"]}" is forbidden: node didn\'t have enough allocatable'
                f" resources: memory, requested: {asked:.0f}, allocatable: {has:.0f}",
            )
        apply_limit_ranges(self.store, meta["namespace"], wanted)
        check_quotas(self.store, meta["namespace"], wanted)

        def edit(obj: Object) -> None:
            obj["metadata"]["generation"] += 1
            obj["spec"]["containers"] = wanted["spec"]["containers"]

        self.store.change("pods", meta["namespace"], meta["name"], edit)
        self._consider(meta["uid"], meta["namespace"], meta["name"])
        return self.store.get("pods", meta["namespace"], meta["name"])

    def tick(self) -> None:
        """Look at what is pending, and do what has come due."""
        for uid in list(self.allocated):
            if pod := self.kubelet.pod(uid):
                self._consider(uid, pod["metadata"]["namespace"], pod["metadata"]["name"])

    def _consider(self, uid: str, namespace: str, name: str) -> None:
        pod = self.store.find("pods", namespace, name)
        allocated = self.allocated.get(uid)
        if pod is None or allocated is None:
            return
        wanted = {one["name"]: one["resources"] for one in pod["spec"]["containers"]}
        if wanted != allocated:
            reason, message = self._refusal(pod)
            stamps = [condition("PodResizePending", True, reason, message)] if reason else []
            if not reason:
                self.allocated[uid] = allocated = clone(wanted)
                self.due[uid] = clock.monotonic() + self.latency(pod["spec"]["nodeName"])
                stamps = [condition("PodResizeInProgress", True)]
            self._show(pod, stamps, allocated)
        if uid in self.due and clock.monotonic() >= self.due[uid]:
            del self.due[uid]
            self.kubelet.set_limits(uid, allocated)
            self._show(pod, [], allocated, done=True)

    def _refusal(self, pod: Object) -> tuple[str, str]:
        node = pod["spec"]["nodeName"]
        if node in self.infeasible:
            return "Infeasible", INFEASIBLE
        why = self.kubelet.lacks(pod, "memory")
        return ("Deferred", why) if why else ("", "")

    def _show(
        self, pod: Object, stamps: list[Object], allocated: dict[str, Object], *, done: bool = False
    ) -> None:
        def edit(obj: Object) -> None:
            status = obj["status"]
            old = status.get("conditions", [])
            kept = [one for one in old if not one["type"].startswith("PodResize")]
            mine = [one for one in old if one["type"].startswith("PodResize")]
            same = [(o["type"], o.get("message")) for o in mine]
            if done or same != [(one["type"], one.get("message")) for one in stamps]:
                status["conditions"] = [*stamps, *kept]
            for one in status.get("containerStatuses", []):
                one["allocatedResources"] = allocated[one["name"]].get("requests", {})
                if done:
                    one["resources"] = allocated[one["name"]]

        meta = pod["metadata"]
        self.store.change("pods", meta["namespace"], meta["name"], edit)
