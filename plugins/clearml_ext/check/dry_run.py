"""A server that is only pretended: what a checked script writes stays in its own process.

Requests that read go to the real server. Requests that write are answered here, as far as the SDK
needs it to go on: a task that the script creates exists for this process, and for nobody else.
What is not known to read counts as writing.
"""

from __future__ import annotations

import base64
import copy
import datetime as dt
import json
import uuid
from collections.abc import Callable, Mapping
from typing import Any

Fetch = Callable[[str], "Mapping[str, Any] | None"]
"""Gives the document of a task that the real server has, by id."""

_READS = ("get", "list", "login", "ping", "validate", "supported", "scalar", "multi", "vector",
          "plots", "debug_images", "download", "search", "top")  # fmt: skip
_PARTS = {
    "get_hyper_params": ("params", "hyperparams", 2),
    "get_configurations": ("configurations", "configuration", 1),
}
# Requests that read by their names only.
_WRITES = frozenset({"queues.get_next_task", "auth.get_credentials_for_user"})
_STATUS = {
    "started": "in_progress", "stopped": "stopped", "stop": "stopped", "completed": "completed",
    "failed": "failed", "close": "closed", "publish": "published", "reset": "created",
    "enqueue": "queued", "dequeue": "created",
}  # fmt: skip


class PretendedServer:
    """Answers what a script writes, and reads of what it wrote.

    Attributes:
        tasks: documents of the tasks that exist only here, by id.
        fetch: gives a real task, to copy it.
        queues: names of the queues there are, if there is no real server; else None.
    """

    def __init__(self, fetch: Fetch = lambda _: None) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.fetch = fetch
        self.queues: list[str] | None = None
        self._projects: dict[str, dict[str, Any]] = {}

    def answer(
        self, service: str, action: str, request: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """The data for a request, or None if it has to go to the real server."""
        if is_read(service, action):
            return self._read(service, action, request)
        if service == "tasks":
            return self._write_task(action, request)
        number = uuid.uuid4().hex
        if service == "projects" and action == "create":
            self._projects[number] = {"id": number, "system_tags": [], **request}
        return {"id": number, "updated": 1, "fields": {}, "added": 1, "errors": 0,
                "errors_info": {}}  # fmt: skip

    def _read(self, service: str, action: str, request: Mapping[str, Any]) -> dict[str, Any] | None:
        known = {**self.tasks, **self._projects}
        if not any(number in str(request) for number in known):
            return None if self.queues is None else self._nothing(service, action, self.queues)
        if service == "projects":
            found = self._projects.get(str(request.get("project")))
            return {"project": found, "projects": [found] if found else []}
        return self._read_tasks(action, request) if service == "tasks" else {}

    @staticmethod
    def _nothing(service: str, action: str, queues: list[str]) -> dict[str, Any]:
        """What an empty server with *queues* would answer."""
        if action == "login":
            claims = {
                "exp": 2**33,
                "api_version": "2.34",
                "server_version": "2.3.0",
                "identity": {},
            }
            parts = (base64.urlsafe_b64encode(json.dumps(e).encode()) for e in ({}, claims, ""))
            return {"token": b".".join(parts).decode().replace("=", "")}
        if service == "queues":
            return {"queues": [{"id": name, "name": name} for name in queues]}
        return {service: [], service.removesuffix("s"): None}

    def _read_tasks(self, action: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if action.startswith("get_by_id"):
            return {"task": copy.deepcopy(self.tasks.get(str(request.get("task"))))}
        wanted = request.get("id") or request.get("tasks") or []
        wanted = [wanted] if isinstance(wanted, str) else wanted
        rows = [copy.deepcopy(self.tasks[each]) for each in wanted if each in self.tasks]
        if action not in _PARTS:
            return {"tasks": rows}
        key, part, depth = _PARTS[action]
        return {key: [{"task": row["id"], part: _entries(row[part], depth)} for row in rows]}

    def _write_task(self, action: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if action in {"create", "clone"}:
            return {"id": self._create(action, request), "updated": 1}
        task = self.tasks.get(str(request.get("task")), _document({}))
        fields = {key: value for key, value in request.items() if key != "task"}
        if action in _STATUS:
            fields = {"status": _STATUS[action]}
            task.update(fields)
        elif action == "edit_hyper_params":
            for entry in request.get("hyperparams") or []:
                task["hyperparams"].setdefault(entry["section"], {})[entry["name"]] = entry
        elif action == "edit_configuration":
            for entry in request.get("configuration") or []:
                task["configuration"][entry["name"]] = entry
        else:
            for key, value in fields.items():
                merged = isinstance(value, dict) and isinstance(task.get(key), dict)
                task[key] = {**task[key], **value} if merged else value
        return {"updated": 1, "fields": fields, "queued": 1, "started": 1, "deleted": True}

    def _create(self, action: str, request: Mapping[str, Any]) -> str:
        source: Mapping[str, Any] = {}
        if action == "clone":
            number = str(request.get("task"))
            source = self.tasks.get(number) or self.fetch(number) or {}
            changes = {key.removeprefix("new_task_"): each for key, each in request.items()}
            request = {key: each for key, each in changes.items() if key not in {"task", "id"}}
        task = _document({**copy.deepcopy(dict(source)), **request})
        self.tasks[task["id"]] = task
        return str(task["id"])


def is_read(service: str, action: str) -> bool:
    """Whether a request changes nothing on the server."""
    return action.startswith(_READS) and f"{service}.{action}" not in _WRITES


def _document(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A task that was just created with *fields*, as the server would have it."""
    moment = dt.datetime.now(dt.timezone.utc).isoformat()
    return {
        "type": "training", "hyperparams": {}, "configuration": {}, "runtime": {}, "tags": [],
        "system_tags": [], "script": {}, "models": {"input": [], "output": []},
        "container": {}, "output": {}, "last_metrics": {}, "last_iteration": 0, "company": "",
        "user": "", "status_reason": "", "status_message": "", "last_update": moment,
        "last_change": moment, **fields,
        "execution": {"artifacts": [], **(fields.get("execution") or {})},
        "id": uuid.uuid4().hex, "created": moment,
        "status": "created", "status_changed": moment,
    }  # fmt: skip


def _entries(tree: Mapping[str, Any], depth: int) -> list[Any]:
    """The entries *depth* levels below *tree*."""
    if depth == 0:
        return [tree]
    return [entry for each in tree.values() for entry in _entries(each, depth - 1)]


pretended = PretendedServer()
"""What the script of this process, if it is only checked, has written so far."""
