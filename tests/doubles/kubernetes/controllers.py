"""The loop in which Jobs get pods, pods get nodes, and what was deleted goes."""

from __future__ import annotations

import contextlib
import threading

from tests.doubles.kubernetes.jobs import JobController, event, is_finished
from tests.doubles.kubernetes.kubelet import Kubelet
from tests.doubles.kubernetes.pod_status import condition
from tests.doubles.kubernetes.scheduler import Scheduler
from tests.doubles.kubernetes.store import ApiError, Object, Store


class Controllers:
    """Look at everything whenever something changed, and ten times a second anyhow."""

    def __init__(
        self, store: Store, kubelet: Kubelet, jobs: JobController, stopping: threading.Event
    ) -> None:
        self.store, self.kubelet, self.jobs, self.stopping = store, kubelet, jobs, stopping
        self.pause_jobs = threading.Event()

    def run(self) -> None:
        seen = -1
        while not self.stopping.is_set():
            with self.store.lock:
                if self.store.version == seen:
                    self.store.lock.wait(0.1)
                seen = self.store.version
            self.once()

    def settle(self) -> None:
        """Pass over everything until nothing changes: what threads would do in their time."""
        seen = -1
        while self.store.version != seen:
            seen = self.store.version
            self.once()

    def once(self) -> None:
        with contextlib.suppress(ApiError):
            self._pass()

    def _pass(self) -> None:
        self.kubelet.resizes.tick()
        self.kubelet.pretender.tick()
        if not self.pause_jobs.is_set():
            for job in self.store.select("jobs"):
                self.jobs.sync(job)
        pods = self.store.select("pods")
        for pod in pods:
            if pod["metadata"].get("deletionTimestamp"):
                self._remove(pod)
        live = [pod for pod in pods if pod["status"]["phase"] in {"Pending", "Running"}]
        scheduler = Scheduler(self.store.select("nodes"), live)
        for pod in live:
            if pod["metadata"].get("deletionTimestamp"):
                continue
            if "nodeName" not in pod["spec"]:
                self._schedule(pod, scheduler)
            else:
                self.kubelet.start(pod)

    def _remove(self, pod: Object) -> None:
        meta = pod["metadata"]
        is_kept = bool(meta.get("finalizers")) and self._job_of(pod)
        if meta["uid"] not in self.kubelet.running and (
            not is_kept or pod["status"]["phase"] == "Pending"
        ):
            self.store.remove("pods", meta["namespace"], meta["name"])

    def _job_of(self, pod: Object) -> bool:
        """Whether the Job that keeps the pod is still there and wants to count it."""
        for owner in pod["metadata"].get("ownerReferences") or []:
            job = self.store.find("jobs", pod["metadata"]["namespace"], owner["name"])
            return job is not None and not is_finished(job)
        return False

    def _schedule(self, pod: Object, scheduler: Scheduler) -> None:
        name, why = scheduler.place(pod)

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

        meta = pod["metadata"]
        changed = self.store.change("pods", meta["namespace"], meta["name"], edit)
        if name and changed:
            self.kubelet.start(changed)
        elif changed is not pod:
            event(self.store, pod, "FailedScheduling", why)
