"""The Job controller: pods for jobs, failure policies, back-off, deadlines, conditions."""

from __future__ import annotations

import uuid

from tests.doubles.kubernetes import clock
from tests.doubles.kubernetes.defaults import default_pod
from tests.doubles.kubernetes.sizes import STATUSES
from tests.doubles.kubernetes.store import ApiError, Object, Store, clone, now

MESSAGES = {
    "BackoffLimitExceeded": "Job has reached the specified backoff limit",
    "DeadlineExceeded": "Job was active longer than specified deadline",
    "CompletionsReached": "Reached expected number of succeeded pods",
}


TRACKING = "batch.kubernetes.io/job-tracking"
"""Keeps a pod that ended until its Job has counted it."""


def is_finished(job: Object) -> bool:
    return any(
        condition["type"] in {"Complete", "Failed"} and condition["status"] == "True"
        for condition in job["status"].get("conditions", [])
    )


def matching_rule(job: Object, pod: Object) -> tuple[int, Object] | None:
    """The first rule of the failure policy that matches a failed pod, and its index."""
    rules = (job["spec"].get("podFailurePolicy") or {}).get("rules", [])
    statuses = [one for field in STATUSES for one in pod["status"].get(field, [])]
    for index, rule in enumerate(rules):
        if codes := rule.get("onExitCodes"):
            for status in statuses:
                ended = status["state"].get("terminated")
                if not ended or ended["exitCode"] == 0:
                    continue
                if codes.get("containerName", status["name"]) != status["name"]:
                    continue
                if (ended["exitCode"] in codes["values"]) == (codes["operator"] == "In"):
                    return index, rule
        for wanted in rule.get("onPodConditions") or []:
            for condition in pod["status"].get("conditions", []):
                if (condition["type"], condition["status"]) == (wanted["type"], wanted["status"]):
                    return index, rule
    return None


class JobController:
    """Brings jobs to the state Kubernetes would bring them to; `sync` is one pass over one job."""

    def __init__(self, store: Store, backoff_s: float, admit: object) -> None:
        self.store, self.backoff_s, self.admit = store, backoff_s, admit
        self.counted: dict[str, set[str]] = {}  # job uid -> uids of its pods already counted
        self.ignored: dict[str, int] = {}
        self.last_failure: dict[str, float] = {}
        self.refused: dict[str, float] = {}
        self.owned: dict[str, dict[str, str]] = {}  # job uid -> pod uid -> pod name

    def sync(self, job: Object) -> None:  # noqa: PLR0912
        if is_finished(job) or job["metadata"].get("deletionTimestamp"):
            return
        uid, place = (job["metadata"][key] for key in ("uid", "namespace"))
        pods = self.pods_of(job)
        if job["spec"]["suspend"]:
            for pod in pods:
                self._ask_to_end(pod)
            return
        if "startTime" not in job["status"]:
            self._change(job, lambda j: j["status"].update(startTime=now()))
        counted = self.counted.setdefault(uid, set())
        failed = job["status"].get("failed", 0)
        verdict: tuple[str, str] | None = None
        for pod in pods:
            if pod["status"]["phase"] != "Failed" or pod["metadata"]["uid"] in counted:
                continue
            counted.add(pod["metadata"]["uid"])
            self._release(pod)
            self.last_failure[uid] = clock.monotonic()
            found = matching_rule(job, pod)
            if found and found[1]["action"] == "Ignore":
                self.ignored[uid] = self.ignored.get(uid, 0) + 1
                continue
            failed += 1
            if found and found[1]["action"] == "FailJob":
                verdict = ("PodFailurePolicy", policy_message(found[0], found[1], pod))
        succeeded = sum(pod["status"]["phase"] == "Succeeded" for pod in pods)
        active = [pod for pod in pods if pod["status"]["phase"] in {"Pending", "Running"}]
        terminating = [pod for pod in active if pod["metadata"].get("deletionTimestamp")]
        deadline = job["spec"].get("activeDeadlineSeconds")
        age = clock.wall() - _seconds(job["status"].get("startTime"))
        if deadline is not None and age > deadline and not succeeded:
            verdict = ("DeadlineExceeded", MESSAGES["DeadlineExceeded"])
            failed += len(active)
        if verdict is None and failed > job["spec"]["backoffLimit"]:
            verdict = ("BackoffLimitExceeded", MESSAGES["BackoffLimitExceeded"])
        if verdict:
            for pod in active:
                self.store.remove("pods", place, pod["metadata"]["name"])
            self._finish(job, "Failed", *verdict, failed=failed)
        elif succeeded >= job["spec"]["completions"]:
            for pod in pods:
                self._release(pod)
            self._finish(job, "Complete", "CompletionsReached", MESSAGES["CompletionsReached"])
        else:
            self._run(job, active, terminating, failed)

    def _run(self, job: Object, active: list, terminating: list, failed: int) -> None:
        uid = job["metadata"]["uid"]
        misses = failed + self.ignored.get(uid, 0)
        wait = self.backoff_s * 2 ** (misses - 1) if misses else 0
        ready = clock.monotonic() >= self.last_failure.get(uid, 0) + wait
        if not active and ready and clock.monotonic() >= self.refused.get(uid, 0):
            try:
                active = [self._create_pod(job)]
            except ApiError as error:
                self.refused[uid] = clock.monotonic() + 0.5
                event(self.store, job, "FailedCreate", f"Error creating: {error.message}")
        running = [pod for pod in active if pod["status"]["phase"] == "Running"]

        def edit(obj: Object) -> None:
            status = obj["status"]
            status["ready"], status["terminating"] = len(running), len(terminating)
            status["uncountedTerminatedPods"] = {}
            for key, value in (("active", len(active) - len(terminating)), ("failed", failed)):
                status[key] = value
                if not value:
                    del status[key]

        self._change(job, edit)

    def _finish(self, job: Object, kind: str, reason: str, message: str, failed: int = 0) -> None:
        first = {"Failed": "FailureTarget", "Complete": "SuccessCriteriaMet"}[kind]
        stamp = now()

        def edit(obj: Object) -> None:
            status = obj["status"]
            status["conditions"] = [
                {
                    "lastProbeTime": stamp,
                    "lastTransitionTime": stamp,
                    "message": message,
                    "reason": reason,
                    "status": "True",
                    "type": name,
                }
                for name in (first, kind)
            ]
            status.pop("active", None)
            status |= {"ready": 0, "terminating": 0, "uncountedTerminatedPods": {}}
            if kind == "Complete":
                status |= {"completionTime": stamp, "succeeded": 1}
            if failed or status.get("failed"):
                status["failed"] = max(failed, status.get("failed", 0))

        self._change(job, edit)

    def _create_pod(self, job: Object) -> Object:
        meta = job["metadata"]
        template = clone(job["spec"]["template"])
        token = f"kube-api-access-{uuid.uuid4().hex[:5]}"
        pod: Object = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "generateName": f"{meta['name']}-",
                "finalizers": [TRACKING],
                "labels": template["metadata"]["labels"],
                "ownerReferences": [
                    {
                        "apiVersion": "batch/v1",
                        "blockOwnerDeletion": True,
                        "controller": True,
                        "kind": "Job",
                        "name": meta["name"],
                        "uid": meta["uid"],
                    }
                ],
            },
            "spec": template["spec"],
        }
        if template["metadata"].get("annotations"):
            pod["metadata"]["annotations"] = template["metadata"]["annotations"]
        pod["metadata"]["name"] = f"{meta['name'][:57]}-{uuid.uuid4().hex[:5]}"
        default_pod(pod, token)
        self.admit(meta["namespace"], pod)  # type: ignore[operator]
        created = self.store.create("pods", meta["namespace"], pod)
        self.owned.setdefault(meta["uid"], {})[created["metadata"]["uid"]] = created["metadata"][
            "name"
        ]
        return created

    def pods_of(self, job: Object) -> list[Object]:
        names = self.owned.get(job["metadata"]["uid"], {})
        found = [self.store.find("pods", job["metadata"]["namespace"], n) for n in names.values()]
        if any(pod is None for pod in found):  # deleted by someone: a failure nobody can read
            for pod_uid, name in list(names.items()):
                if self.store.find("pods", job["metadata"]["namespace"], name) is None:
                    del names[pod_uid]
        return [pod for pod in found if pod is not None]

    def _ask_to_end(self, pod: Object) -> None:
        self.store.change(
            "pods",
            pod["metadata"]["namespace"],
            pod["metadata"]["name"],
            lambda p: p["metadata"].setdefault("deletionTimestamp", now()),
        )

    def _release(self, pod: Object) -> None:
        meta = pod["metadata"]
        self.store.change(
            "pods", meta["namespace"], meta["name"], lambda p: p["metadata"].pop("finalizers", None)
        )

    def _change(self, job: Object, edit: object) -> None:
        meta = job["metadata"]
        self.store.change("jobs", meta["namespace"], meta["name"], edit)  # type: ignore[arg-type]


def policy_message(index: int, rule: Object, pod: Object) -> str:
    where = f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
    if rule.get("onPodConditions"):
        kind = rule["onPodConditions"][0]["type"]
        return f"Pod {where} has condition {kind} matching FailJob rule at index {index}"
    ended = (
        (one, (one["state"].get("terminated") or {}).get("exitCode"))
        for field in STATUSES
        for one in pod["status"].get(field, [])
    )
    status, code = next(one for one in ended if one[1] in rule["onExitCodes"]["values"])
    return (
        f"Container {status['name']} for pod {where} failed with exit code {code}"
        f" matching FailJob rule at index {index}"
    )


def event(store: Store, obj: Object, reason: str, message: str, kind: str = "Warning") -> None:
    meta = obj["metadata"]
    for old in store.select("events", meta["namespace"]):
        if old["involvedObject"]["name"] == meta["name"] and old["message"] == message:
            return
    store.create(
        "events",
        meta["namespace"],
        {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.{uuid.uuid4().hex[:8]}"},
            "involvedObject": {
                "kind": obj["kind"],
                "name": meta["name"],
                "namespace": meta["namespace"],
                "uid": meta["uid"],
            },
            "reason": reason,
            "message": message,
            "type": kind,
            "count": 1,
            "firstTimestamp": now(),
            "lastTimestamp": now(),
        },
    )


def _seconds(stamp: str | None) -> float:
    from datetime import datetime

    return (
        datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp() if stamp else clock.wall()
    )
