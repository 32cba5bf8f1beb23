"""What the double keeps, and what each endpoint does to it: plain dicts, one lock."""

from __future__ import annotations

import copy
import datetime as dt
import re
import threading
import uuid

COMPANY, USER = "d1bd92a3b039400cbafc60a7a5b1e52b", "__tests__"
REGISTER_TIMEOUT_S = 600
MAX_PAGE = 500

DOTTED = re.compile(r"\.")


class ApiError(Exception):
    def __init__(self, code, subcode, text):
        super().__init__(text)
        self.code, self.subcode, self.text = code, subcode, text


def now():
    return dt.datetime.now(dt.timezone.utc)


def stamp(moment=None):
    return (moment or now()).isoformat()


def new_id():
    return uuid.uuid4().hex


def get_dotted(document, path):
    for part in path.split("."):
        if not isinstance(document, dict) or part not in document:
            return None
        document = document[part]
    return document


def set_dotted(document, path, value):
    *parents, last = path.split(".")
    for part in parents:
        document = document.setdefault(part, {})
    document[last] = value


def project_fields(document, only_fields):
    if not only_fields:
        return copy.deepcopy(document)
    picked = {"id": document["id"]}
    for field in only_fields:
        value = get_dotted(document, field)
        if value is not None:
            set_dotted(picked, field, copy.deepcopy(value))
    return picked


class Store:
    """Tasks, queues, workers and projects; an endpoint is a method named ``service_action``."""

    def __init__(self, queues=("default",)):
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.tasks, self.queues, self.workers, self.projects = {}, {}, {}, {}
        self.log_lines = []
        for name in queues:
            self.queues_create({"name": name})

    def notify(self):
        with self.changed:
            self.changed.notify_all()

    # -- auth ------------------------------------------------------------------------------------

    def users_get_current_user(self, request):
        return {
            "user": {"id": USER, "name": "tests", "company": {"id": COMPANY, "name": "clearml"}}
        }

    # -- projects --------------------------------------------------------------------------------

    def projects_create(self, request):
        parent = None
        if "/" in request["name"]:
            above = request["name"].rpartition("/")[0]
            found = next((p for p in self.projects.values() if p["name"] == above), None)
            parent = found["id"] if found else self.projects_create({"name": above})["id"]
        number = new_id()
        self.projects[number] = {
            "id": number,
            "company": COMPANY,
            "user": USER,
            "name": request["name"],
            "basename": request["name"].rpartition("/")[2],
            "description": request.get("description", ""),
            "created": stamp(),
            "last_update": stamp(),
            "tags": [],
            "system_tags": request.get("system_tags", []),
            **({"parent": parent} if parent else {}),
        }
        return {"id": number}

    def projects_get_all(self, request):
        found = [p for p in self.projects.values() if matches(p, request)]
        return {"projects": [project_fields(p, request.get("only_fields")) for p in found]}

    projects_get_all_ex = projects_get_all

    def projects_get_by_id(self, request):
        return {"project": copy.deepcopy(self.project(request["project"]))}

    def projects_update(self, request):
        fields = {k: v for k, v in request.items() if k in ("system_tags", "tags", "description")}
        self.project(request["project"]).update(fields)
        return {"fields": fields, "updated": 1}

    def project(self, number):
        if number not in self.projects:
            raise ApiError(400, 201, f"Invalid project id: id={number}, company={COMPANY}")
        return self.projects[number]

    # -- queues ----------------------------------------------------------------------------------

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
        self.notify()
        answer = {"entry": {"task": entry["task"], "added": entry["added"]}}
        if request.get("get_task_info"):
            answer["task_info"] = {"company": COMPANY, "user": USER}
        return answer

    def queues_remove_task(self, request):
        self.take_out(request["task"])
        return {"removed": 1}

    # -- workers ---------------------------------------------------------------------------------

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

    # -- tasks -----------------------------------------------------------------------------------

    def task(self, number):
        if number not in self.tasks:
            raise ApiError(400, 101, f"Invalid task id: id={number}, company={COMPANY}")
        return self.tasks[number]

    def tasks_create(self, request):
        if len(request.get("name", "")) < 3:
            raise ApiError(400, 800, "Data validation error: name=String value is too short")
        number = new_id()
        self.tasks[number] = {
            "id": number,
            "company": COMPANY,
            "user": USER,
            "type": "training",
            "status": "created",
            "status_reason": "",
            "status_message": "",
            "created": stamp(),
            "last_update": stamp(),
            "last_change": stamp(),
            "last_iteration": 0,
            "last_metrics": {},
            "output": {},
            "execution": {"parameters": {}, "model_desc": {}, "model_labels": {}, "artifacts": []},
            "tags": [],
            "system_tags": [],
            "hyperparams": {},
            "configuration": {},
            "runtime": {},
            "models": {"input": [], "output": []},
            "container": {},
            "script": {"binary": "python", "repository": "", "entry_point": "", "requirements": {}},
            **{key: value for key, value in request.items() if key != "method"},
        }
        return {"id": number}

    def tasks_clone(self, request):
        source = self.task(request["task"])
        kept = (
            "type",
            "script",
            "hyperparams",
            "configuration",
            "container",
            "execution",
            "comment",
        )
        fields = {key: copy.deepcopy(source[key]) for key in kept if key in source}
        fields["execution"]["artifacts"] = []
        fields["execution"].pop("queue", None)
        fields["project"] = request.get("new_task_project") or source.get("project")
        fields["name"] = request.get("new_task_name") or f"Clone of {source['name']}"
        fields["tags"] = request.get("new_task_tags", list(source["tags"]))
        fields["system_tags"] = request.get(
            "new_task_system_tags",
            [tag for tag in source["system_tags"] if tag != "development"],
        )
        if request.get("new_task_parent") or source.get("parent"):
            fields["parent"] = request.get("new_task_parent") or source["parent"]
        fields = {key: value for key, value in fields.items() if value is not None}
        return self.tasks_create(fields)

    def tasks_get_by_id(self, request):
        return {"task": copy.deepcopy(self.task(request["task"]))}

    def tasks_get_all(self, request):
        found = [t for t in self.tasks.values() if matches(t, request)]
        for field in reversed(request.get("order_by") or []):
            found.sort(key=lambda t: str(t.get(field.lstrip("-"), "")), reverse=field[0] == "-")
        found, more = window(found, request)
        return {"tasks": [project_fields(t, request.get("only_fields")) for t in found], **more}

    def tasks_get_all_ex(self, request):
        return self.tasks_get_all(request)

    def tasks_edit(self, request):
        task = self.task(request["task"])
        fields = {k: v for k, v in request.items() if k not in ("task", "force", "method")}
        task.update(fields)
        task["last_change"] = stamp()
        return {"fields": fields, "updated": 1}

    tasks_update = tasks_edit

    def tasks_edit_hyper_params(self, request):
        section_of = self.task(request["task"])["hyperparams"]
        if request.get("replace_hyperparams") == "all":
            section_of.clear()
        for entry in request["hyperparams"]:
            section_of.setdefault(entry["section"], {})[entry["name"]] = entry
        return {"updated": 1}

    def tasks_delete_hyper_params(self, request):
        for key in request.get("hyperparams", []):
            section = self.task(request["task"])["hyperparams"].get(key.get("section"), {})
            section.pop(key.get("name"), None)
        return {"deleted": 1}

    def tasks_get_hyper_params(self, request):
        return {
            "params": [
                {
                    "task": number,
                    "hyperparams": [
                        entry
                        for section in self.task(number)["hyperparams"].values()
                        for entry in section.values()
                    ],
                }
                for number in request["tasks"]
            ]
        }

    def tasks_edit_configuration(self, request):
        configuration = self.task(request["task"])["configuration"]
        if request.get("replace_configuration"):
            configuration.clear()
        for entry in request["configuration"]:
            configuration[entry["name"]] = entry
        return {"updated": 1}

    def tasks_get_configurations(self, request):
        wanted = request.get("names")
        return {
            "configurations": [
                {
                    "task": number,
                    "configuration": [
                        entry
                        for entry in self.task(number)["configuration"].values()
                        if not wanted or entry["name"] in wanted
                    ],
                }
                for number in request["tasks"]
            ]
        }

    def tasks_set_requirements(self, request):
        self.task(request["task"])["script"]["requirements"] = request["requirements"]
        return {"fields": {}, "updated": 1}

    def tasks_add_or_update_artifacts(self, request):
        artifacts = self.task(request["task"])["execution"].setdefault("artifacts", [])
        for entry in request["artifacts"]:
            artifacts[:] = [each for each in artifacts if each["key"] != entry["key"]]
            artifacts.append(entry)
        return {"updated": 1}

    def tasks_started(self, request):
        fields = self.move(request, "in_progress", ("created", "queued", "stopped", "in_progress"))
        started = "started" not in self.task(request["task"])
        if started:
            self.task(request["task"])["started"] = fields["started"] = stamp()
        return {"fields": fields, "started": 1, "updated": 1}

    def tasks_stop(self, request):
        task = self.task(request["task"])
        worker = self.workers.get(task.get("last_worker") or "")
        alive = worker is not None and self.is_listed(worker) and worker["task_id"] == task["id"]
        if task["status"] == "queued":
            self.take_out(task["id"])
        if task["status"] == "in_progress" and alive and not request.get("force"):
            fields = {
                "status_message": "stopping",
                "status_reason": request.get("status_reason", ""),
            }
            task.update(fields)
            self.notify()
            return {"fields": {"status": "in_progress", **fields}, "updated": 1}
        return {"fields": self.move({**request, "force": True}, "stopped", ()), "updated": 1}

    def tasks_stopped(self, request):
        if self.task(request["task"])["status"] == "queued":
            self.take_out(request["task"])
        fields = self.move(request, "stopped", ("queued", "in_progress", "stopped", "failed"))
        self.task(request["task"])["completed"] = stamp()
        return {"fields": fields, "updated": 1}

    def tasks_completed(self, request):
        fields = self.move(request, "completed", ("in_progress", "stopped", "completed"))
        self.task(request["task"])["completed"] = stamp()
        return {"fields": fields, "published": 0, "updated": 1}

    def tasks_failed(self, request):
        if self.task(request["task"])["status"] == "queued":
            self.take_out(request["task"])
        fields = self.move(request, "failed", ("in_progress", "stopped", "failed"))
        self.task(request["task"])["completed"] = stamp()
        return {"fields": fields, "updated": 1}

    def tasks_reset(self, request):
        task = self.task(request["task"])
        self.take_out(task["id"])
        for key in ("started", "completed", "last_worker"):
            task.pop(key, None)
        task["execution"].pop("queue", None)
        task["runtime"] = {}
        reset = {**request, "status_reason": "reset", "status_message": "reset", "force": True}
        fields = self.move(reset, "created", ())
        return {
            "deleted_models": 0,
            "dequeued": {},
            "events": {},
            "fields": fields,
            "updated": 1,
            "urls": {},
        }

    def tasks_delete(self, request):
        task = self.task(request["task"])
        if task["status"] not in ("created", "stopped", "failed", "completed") and not request.get(
            "force"
        ):
            raise ApiError(400, 110, f"Invalid task status: current_status={task['status']}")
        self.take_out(task["id"])
        del self.tasks[task["id"]]
        self.notify()
        return {
            "deleted": True,
            "updated_children": 0,
            "updated_models": 0,
            "events": {},
            "urls": {},
        }

    def tasks_delete_many(self, request):
        for number in request["ids"]:
            self.tasks_delete({"task": number, "force": request.get("force")})
        return {"succeeded": [{"id": n, "deleted": True} for n in request["ids"]], "failed": []}

    def tasks_enqueue(self, request):
        task = self.task(request["task"])
        number = request.get("queue")
        if not number:
            name = request.get("queue_name") or "default"
            number = next((q["id"] for q in self.queues.values() if q["name"] == name), None)
            if number is None:
                raise ApiError(400, 701, f"Invalid queue id: name={name}, company={COMPANY}")
        queue = self.queue(number)
        if task["status"] not in ("created", "stopped"):
            raise ApiError(
                400, 110, f"Invalid task status: current_status={task['status']}, expected=created"
            )
        earlier = task["status"]
        task["execution"]["queue"] = number
        fields = self.move({**request, "force": True}, "queued", ())
        task["enqueue_status"] = earlier
        queue["entries"].append({"task": task["id"], "added": stamp()})
        queue["last_update"] = stamp()
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

    def tasks_dequeue(self, request):
        task = self.task(request["task"])
        if task["status"] != "queued":
            raise ApiError(400, 110, f"Invalid task status: current_status={task['status']}")
        self.take_out(task["id"])
        task["enqueue_status"] = None
        status = request.get("new_status") or "created"
        fields = self.move({"task": task["id"], "force": True}, status, ())
        return {"dequeued": 1, "fields": {**fields, "enqueue_status": None}, "updated": 1}

    def tasks_ping(self, request):
        self.task(request["task"])["last_update"] = stamp()
        return {}

    def take_out(self, number):
        for queue in self.queues.values():
            queue["entries"] = [entry for entry in queue["entries"] if entry["task"] != number]

    def move(self, request, status, allowed):
        task = self.task(request["task"])
        if not request.get("force") and task["status"] not in allowed:
            states = f"current_status={task['status']}, new_status={status}"
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
        self.notify()
        return fields

    # -- events and models -----------------------------------------------------------------------

    def events_add_batch(self, request):
        lines = request if isinstance(request, list) else [request]
        self.log_lines += [line for line in lines if isinstance(line, dict)]
        return {"added": len(lines), "errors": 0, "errors_info": {}}

    def events_get_task_log(self, request):
        return {"events": [], "returned": 0, "total": 0, "scroll_id": None}

    def models_get_all(self, request):
        return {"models": []}


def window(found, request):
    """The rows of *found* that a ``get_all`` request gets, and what is said beside them.

    At most 500, a page of them, unless it scrolls.
    """
    if "scroll_id" in request:
        return found[: request["size"]], {"scroll_id": new_id()}
    size = min(request.get("page_size") or MAX_PAGE, MAX_PAGE)
    begin = (request.get("page") or 0) * size
    return found[begin : begin + size], {}


def matches(document, request):
    """Whether *document* is what a ``get_all`` request asks for, in the filters the SDK uses."""
    for key in ("name", "basename"):
        if request.get(key) and not re.search(request[key], document.get(key, "")):
            return False
    for key in ("id", "project", "status", "type", "parent"):
        wanted = request.get(key)
        if wanted and document.get(key) not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    for key in ("system_tags", "tags"):
        for tag in request.get(key) or []:
            if tag.startswith("__$"):
                continue
            if tag.startswith("-"):
                if tag[1:] in document.get(key, []):
                    return False
            elif tag not in document.get(key, []):
                return False
    pattern = request.get("_any_") or {}
    fields, text = pattern.get("fields") or [], pattern.get("pattern")
    return not text or any(re.search(text, str(get_dotted(document, f) or "")) for f in fields)
