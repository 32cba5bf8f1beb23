"""The endpoints that move a task from one status to another."""

from __future__ import annotations

from tests.doubles.clearml.documents import USER, ApiError, now, stamp

TASK_UPDATE_TIMEOUT_S = 600
"""How long after its last sign of life a task counts as run by its worker."""

FOLLOWS = {
    "created": {"queued", "in_progress"},
    "queued": {"created", "in_progress", "stopped"},
    "in_progress": {"stopped", "failed", "created", "completed"},
    "stopped": {"closed", "created", "failed", "queued", "in_progress", "published", "completed"},
    "closed": {"created", "failed", "published", "stopped"},
    "failed": {"created", "stopped", "published", "queued"},
    "published": set(),
    "completed": {"published", "in_progress", "created"},
}
"""Statuses that a task may go to without force, beside the one it has."""


class TaskStates:
    """What may follow on what, as in the state machine of the real server."""

    def tasks_started(self, request):
        task = self.task(request["task"])
        again = task["status"] == "in_progress" and "started" in task
        fields = self.move(request, "in_progress")
        if not again:
            task.pop("completed", None)
            task["started"] = fields["started"] = stamp()
        return {"fields": fields, "started": 1, "updated": 1}

    def tasks_stop(self, request):
        task = self.task(request["task"])
        waits = task["status"] == "queued"
        if waits:
            self.take_out(task["id"])
        if waits or "development" in task["system_tags"] or not self.is_run_by_worker(task):
            told = {**request, "status_message": "Stopped by tests"}
            return {"fields": self.move(told, "stopped"), "updated": 1}
        told = {**request, "status_message": "stopping"}
        return {"fields": self.move(told, task["status"]), "updated": 1}

    def is_run_by_worker(self, task):
        """Whether a worker reported the task lately; the server does not ask which, or if it lives."""
        seen = self.seen.get(task["id"])
        if not task.get("last_worker") or seen is None:
            return False
        return (now() - seen).total_seconds() < TASK_UPDATE_TIMEOUT_S

    def tasks_stopped(self, request):
        return self.end(request, "stopped")

    def tasks_completed(self, request):
        return {**self.end(request, "completed"), "published": 0}

    def tasks_failed(self, request):
        return self.end(request, "failed")

    def end(self, request, status):
        """Move a task to a *status* at its end; one that waits stays listed in its queue."""
        fields = self.move(request, status)
        self.task(request["task"])["completed"] = fields["completed"] = stamp()
        return {"fields": fields, "updated": 1}

    def tasks_reset(self, request):
        task = self.task(request["task"])
        if task["status"] == "published" and not request.get("force"):
            raise ApiError(400, 110, f"Invalid task status: status={task['status']}")
        self.take_out(task["id"])
        fields = self.move(
            {**request, "status_reason": "reset", "status_message": "reset"}, "created"
        )
        for key in ("started", "completed", "last_worker", "enqueue_status"):
            task.pop(key, None)
        execution = task["execution"]
        execution.pop("queue", None)
        execution["artifacts"] = kept_artifacts(execution)
        task["runtime"] = {}
        return {
            "deleted_models": 0,
            "dequeued": {},
            "events": {},
            "fields": fields,
            "updated": 1,
            "urls": {},
        }

    def tasks_enqueue(self, request):
        task = self.task(request["task"])
        number = self.queue_for(request)
        before = task["status"]
        earlier = task.get("enqueue_status") if before == "queued" else None
        earlier = earlier or before
        fields = self.move(request, "queued")
        try:
            self.queues_add_task({"queue": number, "task": task["id"]})
        except ApiError:
            task["enqueue_status"] = None
            self.move(
                {"task": task["id"], "status_reason": "failed enqueueing", "force": True}, before
            )
            raise
        task["enqueue_status"] = earlier
        task["execution"]["queue"] = number
        task["system_tags"] = [tag for tag in task["system_tags"] if tag != "development"]
        self.take_out(task["id"], but=number)
        self.notify()
        answer = {
            "fields": {**fields, "enqueue_status": earlier, "execution.queue": number},
            "queued": 1,
            "updated": 1,
        }
        if request.get("verify_watched_queue"):
            answer["queue_watched"] = any(
                number in worker["queue_ids"] and self.is_listed(worker)
                for worker in self.workers.values()
            )
        return answer

    def queue_for(self, request):
        """The id of the queue that a request names; one that is named and missing is created."""
        number, name = request.get("queue"), request.get("queue_name")
        if number and name:
            raise ApiError(400, 12, "Validation error: Either queue id or queue name")
        if number:
            return number
        named = {queue["name"]: queue["id"] for queue in self.queues.values()}
        name = name or "default"
        return named.get(name) or self.queues_create({"name": name})["id"]

    def tasks_dequeue(self, request):
        """Out of its queue, and back to what it was; one that runs already is thrown back too."""
        task = self.task(request["task"])
        if task["status"] == "queued":
            self.take_out(task["id"])
        if task["status"] not in ("queued", "in_progress"):
            return {"dequeued": 1, "updated": 0}
        status = request.get("new_status") or task.get("enqueue_status") or "created"
        task["enqueue_status"] = None
        fields = self.move({**request, "force": True}, status)
        return {"dequeued": 1, "fields": {**fields, "enqueue_status": None}, "updated": 1}

    def tasks_ping(self, request):
        self.task(request["task"])["last_update"] = stamp()
        self.seen[request["task"]] = now()
        return {}

    def take_out(self, number, but=None):
        """Take a task out of all queues, or of all but one."""
        for queue in self.queues.values():
            if queue["id"] != but:
                queue["entries"] = [each for each in queue["entries"] if each["task"] != number]

    def move(self, request, status):
        task = self.task(request["task"])
        earlier = task["status"]
        if not request.get("force") and status != earlier and status not in FOLLOWS[earlier]:
            states = f"current_status={earlier}, new_status={status}"
            raise ApiError(400, 110, f"Invalid task status (Invalid status change): {states}")
        fields = {
            "status": status,
            "status_reason": request.get("status_reason") or "",
            "status_message": request.get("status_message") or "",
            "status_changed": stamp(),
            "last_update": stamp(),
            "last_change": stamp(),
            "last_changed_by": USER,
        }
        task.update(fields)
        self.seen[task["id"]] = now()
        self.notify()
        return dict(fields)


def kept_artifacts(execution):
    """The artifacts that a copy or a reset keeps: those the user put in."""
    found = execution.get("artifacts") or []
    return [each for each in found if each.get("mode", "output") != "output"]
