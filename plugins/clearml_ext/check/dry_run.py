"""The server that a checked script talks to: what the script writes never reaches the real one.

Requests that read go on to the real server. Requests that write are answered here, as far as the
SDK needs it to go on: a task that the script creates exists for its processes, and for nobody else.
What is not known to read counts as writing. The script is given this server's address, and so are
the processes that it starts, whatever they are: the guard inside the script is not the only net.
"""

from __future__ import annotations

import base64
import copy
import datetime as dt
import json
import secrets
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from clearml_ext.errors import ServerError
from clearml_ext.server.client import Client

_READS = ("get", "list", "login", "ping", "validate", "supported", "scalar", "multi", "vector",
          "plots", "debug_images", "download", "search", "top")  # fmt: skip
_PARTS = {
    "get_hyper_params": ("params", "hyperparams", 2),
    "get_configurations": ("configurations", "configuration", 1),
}
# What the server copies to a clone: nothing that the run left behind.
_CLONED = ("name", "type", "script", "hyperparams", "configuration", "container", "execution",
           "tags", "system_tags", "project", "comment")  # fmt: skip
# Requests that read by their names only.
_WRITES = frozenset({"queues.get_next_task", "auth.get_credentials_for_user", "tasks.ping"})
_STATUS = {
    "started": "in_progress", "stopped": "stopped", "stop": "stopped", "completed": "completed",
    "failed": "failed", "close": "closed", "publish": "published", "reset": "created",
    "enqueue": "queued", "dequeue": "created",
}  # fmt: skip


class PretendedServer:
    """A server that keeps what a script writes, and answers reads of it.

    Attributes:
        client: asks the real server; None if there is none.
        queues: names of the queues that exist if there is no real server.
        tasks: documents of the tasks that exist only here, by id.
        enqueued: (task, queue) of each request to enqueue a task.
    """

    def __init__(self, client: Client | None = None, queues: Sequence[str] = ()) -> None:
        self.client, self.queues = client, queues
        self.tasks: dict[str, dict[str, Any]] = {}
        self.enqueued: list[tuple[str, str]] = []
        self._others: dict[str, dict[str, Any]] = {}  # projects, models, queues
        self._lock = threading.Lock()  # a script has threads, and processes of its own

    def answer(self, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a request with its data; *path* may name a version before the endpoint.

        Raises:
            ServerError: the real server was asked, and gave none.
        """
        service, _, action = path.rpartition("/")[2].partition(".")
        if is_read(f"{service}.{action}"):
            return self._read(path, service, action, request)
        if service == "tasks":
            with self._lock:
                return self._write_task(action, request)
        number = uuid.uuid4().hex
        with self._lock:
            if action == "create":
                self._others[number] = {"system_tags": [], **request, "id": number}
            else:
                known = self._others.get(str(request.get(service.removesuffix("s"))), {})
                known.update(request)
        return {"id": number, "updated": 1, "fields": {}, "added": 1, "errors": 0,
                "errors_info": {}}  # fmt: skip

    def _read(
        self, path: str, service: str, action: str, request: Mapping[str, Any]
    ) -> dict[str, Any]:
        text = str(request)
        with self._lock:
            others = [dict(row) for number, row in self._others.items() if number in text]
            is_known = bool(others) or any(number in text for number in self.tasks)
        if action == "login" and self.client is not None:
            # What the SDK reads in it, without the signature that the server would accept.
            return {"token": ".".join([*self.client.token().split(".")[:2], "none"])}
        if service != "tasks" and others:
            return {service: others, service.removesuffix("s"): others[0]}
        if not is_known:
            if self.client is not None:
                return self.client.call(path, request)
            return self._nothing(service, action, self.queues)
        if service != "tasks":
            return {}
        with self._lock:
            rows = self._read_tasks(action, request)
        left = [each for each in request.get("id") or () if each not in self.tasks]
        if action.startswith("get_all") and left and self.client is not None:
            rows["tasks"] += self.client.call(path, {**request, "id": left}).get("tasks") or []
        return rows

    @staticmethod
    def _nothing(service: str, action: str, queues: Sequence[str]) -> dict[str, Any]:
        """Answer as an empty server that has *queues*."""
        if action == "login":
            claims = {"exp": 2**33, "api_version": "2.34", "server_version": "2.3", "identity": {}}
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
        if action.startswith("enqueue"):
            queue = str(request.get("queue") or request.get("queue_name"))
            ids = request.get("ids") or [request.get("task")]
            self.enqueued += [(str(each), queue) for each in ids]
        task = self.tasks.get(str(request.get("task")), _document({}))
        fields = {key: value for key, value in request.items() if key != "task"}
        if action in _STATUS:
            fields = {"status": _STATUS[action]}
            task.update(fields)
        elif action == "edit_hyper_params":
            for entry in request.get("hyperparams") or []:
                task["hyperparams"].setdefault(entry["section"], {})[entry["name"]] = entry
        elif action == "add_or_update_artifacts":
            kept = [*task["execution"]["artifacts"], *request["artifacts"]]
            task["execution"]["artifacts"] = list({each["key"]: each for each in kept}.values())
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
            source = self.tasks.get(str(request.get("task"))) or {}
            if not source and self.client is not None:
                asked = {"task": request.get("task")}
                source = self.client.call("tasks.get_by_id", asked).get("task") or {}
            source = {key: source[key] for key in _CLONED if key in source}
            changes = {key.removeprefix("new_task_"): each for key, each in request.items()}
            request = {key: each for key, each in changes.items() if key not in {"task", "id"}}
        task = _document({**copy.deepcopy(dict(source)), **request})
        self.tasks[task["id"]] = task
        return str(task["id"])


def is_read(endpoint: str) -> bool:
    """Whether a request changes nothing on the server."""
    return endpoint.partition(".")[2].startswith(_READS) and endpoint not in _WRITES


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


@contextmanager
def serve(pretended: PretendedServer) -> Iterator[str]:
    """Serve *pretended* on loopback within the block; gives the address.

    The address holds a secret: others on this machine could otherwise read the workspace.
    """
    secret = secrets.token_urlsafe()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request: dict[str, Any] = {}
            with suppress(ValueError, TypeError):  # several, one a line
                request = dict(json.loads(body or "{}"))
            given, _, path = urlsplit(self.path).path.lstrip("/").partition("/")
            status, text = (200, "OK") if given == secret else (404, "Not found")
            data: dict[str, Any] = {}
            try:
                data = pretended.answer(path, request) if given == secret else {}
            except ServerError as error:
                status, text = error.status or 502, error.problem
            named = {"name": path.rpartition("/")[2], "requested_version": "2.0",
                     "actual_version": "2.0"}  # fmt: skip
            meta = {"id": "0", "trx": "0", "endpoint": named, "result_code": status,
                    "result_subcode": 0, "result_msg": text, "error_stack": ""}  # fmt: skip
            content = json.dumps({"meta": meta, "data": data}, default=str).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST  # noqa: N815  # the SDK sends bodies with both

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # its names
            """Say nothing: the output is the script's."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{secret}"
        server.shutdown()
