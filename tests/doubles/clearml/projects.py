"""The endpoints of users, projects, events and models."""

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
)


class Projects:
    """What pipelines need beside queues, workers and tasks."""

    def users_get_current_user(self, request):
        return {
            "user": {"id": USER, "name": "tests", "company": {"id": COMPANY, "name": "clearml"}}
        }

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

    def events_add_batch(self, request):
        lines = request if isinstance(request, list) else [request]
        self.log_lines += [line for line in lines if isinstance(line, dict)]
        return {"added": len(lines), "errors": 0, "errors_info": {}}

    def events_get_task_log(self, request):
        return {"events": [], "returned": 0, "total": 0, "scroll_id": None}

    def models_get_all(self, request):
        return {"models": []}
