"""The endpoints that create, copy, read, edit and delete tasks."""

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
from tests.doubles.clearml.task_states import kept_artifacts

UPDATABLE = {"name", "tags", "system_tags", "comment", "project", "status_message"}
EDITABLE = (UPDATABLE - {"status_message"}) | {
    "type", "parent", "models", "container", "output_dest", "execution", "hyperparams",
    "configuration", "script", "runtime", "error", "input", "status",
}  # fmt: skip
DELETED = "__DELETED__"
"""Before the id of a parent that is no more."""
EMBEDDED = {"execution", "script", "models"}
"""Fields whose parts are set one by one; the others are replaced whole."""


class Tasks:
    """Tasks as documents."""

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
        """A copy without what the run left behind.

        Its parent is the task's parent, or, where that has none, the task itself.
        """
        source = self.task(request["task"])
        kept = ("type", "script", "hyperparams", "configuration", "container", "execution")
        fields = {key: copy.deepcopy(source[key]) for key in kept if key in source}
        fields["execution"]["artifacts"] = kept_artifacts(fields["execution"])
        fields["execution"].pop("queue", None)
        parent = source.get("parent") or ""
        system_tags = [t for t in source["system_tags"] if t not in ("development", "archived")]
        copied = {
            "project": source.get("project"),
            "name": source["name"],
            "comment": source.get("comment"),
            "tags": list(source["tags"]),
            "system_tags": system_tags,
            "parent": source["id"] if not parent or DELETED in parent else parent,
        }
        for key, value in copied.items():
            fields[key] = request.get(f"new_task_{key}") or value
        return self.tasks_create({k: v for k, v in fields.items() if v is not None})

    def tasks_get_by_id(self, request):
        return {"task": copy.deepcopy(self.task(request["task"]))}

    def tasks_get_all(self, request):
        found = [t for t in self.tasks.values() if matches(t, request)]
        if not (request.get("search_hidden") or request.get("id")):
            found = [t for t in found if "hidden" not in t["system_tags"]]
        for field in reversed(request.get("order_by") or []):
            found.sort(key=lambda t: str(t.get(field.lstrip("-"), "")), reverse=field[0] == "-")
        found, more = window(found, request)
        return {"tasks": [project_fields(t, request.get("only_fields")) for t in found], **more}

    def tasks_get_all_ex(self, request):
        return self.tasks_get_all(request)

    def tasks_edit(self, request):
        task = self.task(request["task"])
        if task["status"] != "created" and not request.get("force"):
            raise ApiError(400, 110, f"Invalid task status: expected=created, {task['status']}")
        return self.change(task, request, EDITABLE)

    def tasks_update(self, request):
        return self.change(self.task(request["task"]), request, UPDATABLE)

    def change(self, task, request, allowed):
        """Set those fields of *request* that are *allowed*; parts of a document are merged."""
        fields = {key: value for key, value in request.items() if key in allowed}
        for key in EMBEDDED & set(fields):
            fields[key] = {**(task.get(key) or {}), **fields[key]}
        task.update(fields)
        task["last_change"] = stamp()
        return {"fields": fields, "updated": int(bool(fields))}

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

    def tasks_delete(self, request):
        task = self.task(request["task"])
        deletable = task["status"] == "created" or "archived" in task["system_tags"]
        if not deletable and not request.get("force"):
            raise ApiError(400, 123, f"Task cannot be deleted: current={task['status']}")
        self.take_out(task["id"])
        del self.tasks[task["id"]]
        for child in self.tasks.values():
            if child.get("parent") == task["id"]:
                child["parent"] = f"{DELETED}{task['id']}"
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
