"""The endpoints of workers."""

from __future__ import annotations

from tests.doubles.clearml.documents import COMPANY, USER, now, stamp

REGISTER_TIMEOUT_S = 600


class Workers:
    """Agents as they register and report."""

    def workers_register(self, request):
        moment = now()
        self.workers[request["worker"]] = {
            "id": request["worker"],
            "key": f"worker_{COMPANY}_{USER}_{request['worker']}",
            "queue_ids": list(request.get("queues") or []),
            "tags": list(request.get("tags") or []),
            "system_tags": list(request.get("system_tags") or []),
            "register_time": moment,
            "last_activity_time": moment,
            "register_timeout": int(request.get("timeout") or REGISTER_TIMEOUT_S),
            "task_id": None,
        }
        self.notify()
        return {}

    def workers_unregister(self, request):
        self.workers.pop(request["worker"], None)
        self.notify()
        return {}

    def workers_status_report(self, request):
        name = request["worker"]
        if name not in self.workers:
            self.workers_register({"worker": name, "queues": request.get("queues")})
        worker = self.workers[name]
        worker["last_activity_time"] = now()
        worker["task_id"] = request.get("task")
        if request.get("queues"):
            worker["queue_ids"] = list(request["queues"])
        if request.get("tags"):
            worker["tags"] = list(request["tags"])
        if request.get("task") in self.tasks:
            self.tasks[request["task"]]["last_worker"] = name
            self.seen[request["task"]] = now()
        self.notify()
        return {}

    def is_listed(self, worker, last_seen=None):
        age = (now() - worker["last_activity_time"]).total_seconds()
        return age < (last_seen or worker["register_timeout"])

    def workers_get_all(self, request):
        return {
            "workers": [
                self.worker_row(worker)
                for worker in self.workers.values()
                if self.is_listed(worker, request.get("last_seen"))
            ]
        }

    def worker_row(self, worker):
        row = {
            "company": {"id": COMPANY, "name": "clearml"},
            "id": worker["id"],
            "ip": "127.0.0.1",
            "key": worker["key"],
            "last_activity_time": stamp(worker["last_activity_time"]),
            "last_report_time": stamp(worker["last_activity_time"]),
            "queues": [
                {
                    "id": number,
                    "name": self.queues[number]["name"],
                    "num_tasks": len(self.queues[number]["entries"]),
                }
                for number in worker["queue_ids"]
                if number in self.queues
            ],
            "register_time": stamp(worker["register_time"]),
            "register_timeout": worker["register_timeout"],
            "system_tags": worker["system_tags"],
            "tags": worker["tags"],
            "user": {"id": USER, "name": "tests"},
        }
        if worker["task_id"] in self.tasks:
            task = self.tasks[worker["task_id"]]
            row["task"] = {"id": task["id"], "name": task["name"], "running_time": 0}
        return row

    def task_reference(self, number):
        return {"id": number, "name": self.tasks[number]["name"]} if number in self.tasks else None
