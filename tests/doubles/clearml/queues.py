"""The endpoints of queues."""

from __future__ import annotations

import copy

from tests.doubles.clearml.documents import (
    COMPANY,
    USER,
    ApiError,
    matches,
    new_id,
    project_fields,
    stamp,
    window,
)


class Queues:
    """Queues and the tasks that wait in them."""

    def queues_create(self, request):
        number = new_id()
        self.queues[number] = {
            "id": number,
            "name": request["name"],
            "company": COMPANY,
            "created": stamp(),
            "tags": request.get("tags", []),
            "system_tags": request.get("system_tags", []),
            "entries": [],
            "last_update": stamp(),
            "metadata": {},
        }
        return {"id": number}

    def queue(self, number):
        if number not in self.queues:
            raise ApiError(400, 701, f"Invalid queue id: id={number}, company={COMPANY}")
        return self.queues[number]

    def queues_get_by_id(self, request):
        return {"queue": copy.deepcopy(self.queue(request["queue"]))}

    def queues_get_all(self, request):
        found = [q for q in self.queues.values() if matches(q, request)]
        found, more = window(found, request)
        return {"queues": [project_fields(q, request.get("only_fields")) for q in found], **more}

    def queues_get_all_ex(self, request):
        found = []
        for queue in self.queues.values():
            if "k8s_scheduler" in queue["name"] and not request.get("search_hidden"):
                continue
            if not matches(queue, request):
                continue
            row = copy.deepcopy(queue)
            row["company"] = {"id": COMPANY}
            row["entries"] = [
                {
                    "task": {"id": e["task"], "name": self.tasks[e["task"]]["name"]},
                    "added": e["added"],
                }
                for e in queue["entries"]
            ]
            row["workers"] = [
                {
                    "name": worker["id"],
                    "ip": "127.0.0.1",
                    "key": worker["key"],
                    "task": self.task_reference(worker.get("task_id")),
                }
                for worker in self.workers.values()
                if queue["id"] in worker["queue_ids"] and self.is_listed(worker)
            ]
            found.append(row)
        found, more = window(found, request)
        return {"queues": found, **more}

    def queues_get_num_entries(self, request):
        return {"num": len(self.queue(request["queue"])["entries"])}

    def queues_add_or_update_metadata(self, request):
        metadata = self.queue(request["queue"])["metadata"]
        for entry in request["metadata"]:
            metadata[entry["key"]] = entry
        return {"updated": 1}

    def queues_get_next_task(self, request):
        queue = self.queue(request["queue"])
        if not queue["entries"]:
            return {}
        entry = queue["entries"].pop(0)
        task = self.tasks.get(entry["task"])
        if task is not None and task["status"] == "stopped":
            task["status"] = "queued"  # the server takes a stop for one of an earlier run
        self.notify()
        answer = {"entry": {"task": entry["task"], "added": entry["added"]}}
        if request.get("get_task_info"):
            answer["task_info"] = {"company": COMPANY, "user": USER}
        return answer

    def queues_add_task(self, request):
        queue = self.queue(request["queue"])
        if any(entry["task"] == request["task"] for entry in queue["entries"]):
            raise ApiError(400, 706, f"Failed adding task to queue: task={request['task']}")
        queue["entries"].append({"task": request["task"], "added": stamp()})
        queue["last_update"] = stamp()
        self.notify()
        return {"added": 1}

    def queues_remove_task(self, request):
        queue = self.queue(request["queue"])
        left = [entry for entry in queue["entries"] if entry["task"] != request["task"]]
        if len(left) == len(queue["entries"]):
            raise ApiError(400, 703, f"Invalid queue id or task not in queue: {request}")
        queue["entries"] = left
        self.notify()
        return {"removed": 1}
