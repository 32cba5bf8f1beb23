"""The tasks of a pipeline: which there are, how they are moved, and how they are stopped."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from clearml_ext.errors import ServerError
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import Snapshot
from clearml_ext.server.tasks import Launched, launched_by_task

__all__ = ["family", "move_task", "stop_children"]

_FIELDS = ["id", "name", "type", "status", "status_message", "parent", "execution.queue", "started",
           "system_tags", "last_worker"]  # fmt: skip
_STATE = ["configuration.Pipeline", "runtime"]
_LIVE = ("queued", "in_progress", "created")
_REFUSED = 400

log = logging.getLogger(__name__)


def family(
    client: Client, controller: str, launched: Launched | None = None
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The controller's document and those of the tasks that it launched.

    Args:
        client: asks the server.
        controller: id of the controller's task.
        launched: what it launched, by default what its task says: the controller writes that some
            seconds later.
    """
    own_fields = _FIELDS if launched is not None else _FIELDS + _STATE
    more = {"search_hidden": True}
    rows = client.rows(
        "tasks.get_all", {"id": [controller], "only_fields": own_fields, **more}, "tasks"
    )
    own = rows[0] if rows else {}
    if launched is None:
        launched = launched_by_task(own)
    children = client.rows(
        "tasks.get_all", {"parent": controller, "only_fields": _FIELDS, **more}, "tasks"
    )
    return own, [child for child in children if launched.includes(child)]


def move_task(client: Client, snapshot: Snapshot, task: str, here: str, queue: str) -> bool:
    """Take *task* out of queue *here* and put it in *queue*; False where an agent was faster.

    ``tasks.dequeue`` would not do: the server throws a task back that an agent has just started.

    Raises:
        ServerError: the server does not answer, or does not take the task; it waits *here* again.
    """
    number = {name: each for each, name in snapshot.queues.items()}
    if not _accepted(client, "queues.remove_task", {"queue": number[here], "task": task}):
        return False
    try:
        client.call("tasks.enqueue", {"task": task, "queue": number[queue]})
    except ServerError:
        client.call("queues.add_task", {"queue": number[here], "task": task})
        raise
    return True


def stop_children(client: Client, controller: str, launched: Launched | None = None) -> list[str]:
    """Stop what *controller* launched and what these launched; returns names of those stopped.

    Waiting tasks leave their queue first, so that no agent that becomes free takes them. One that
    the server refuses to stop does not keep the others. Clones are left alone.

    Raises:
        ServerError: the server does not answer.
    """
    stopped: list[str] = []
    pending = [controller]
    seen = {controller}
    while pending:
        _, children = family(client, pending.pop(), launched)
        launched = None
        for child in sorted(children, key=lambda each: each.get("status") != "queued"):
            number = str(child["id"])
            if child.get("status") not in _LIVE or number in seen:
                continue
            seen.add(number)
            pending.append(number)
            if _stop(client, child):
                stopped.append(str(child.get("name")))
    return stopped


def _stop(client: Client, task: Mapping[str, Any]) -> bool:
    """Stop one task that is waiting, running or not enqueued yet; whether the server did."""
    number, status = str(task["id"]), task.get("status")
    queue = (task.get("execution") or {}).get("queue")
    place = {"queue": queue, "task": number}
    if status == "queued" and not (queue and _accepted(client, "queues.remove_task", place)):
        status = "in_progress"  # an agent was faster
    reason: dict[str, object] = {"task": number, "status_reason": "its pipeline was aborted"}
    if status == "in_progress":
        return _accepted(client, "tasks.stop", reason)
    # The server stops a task that is not enqueued only by force.
    return _accepted(client, "tasks.stopped", {**reason, "force": True})


def _accepted(client: Client, endpoint: str, request: Mapping[str, object]) -> bool:
    """Whether the server did it; False where it answered that the task's state forbids it."""
    try:
        client.call(endpoint, request)
    except ServerError as error:
        if error.status != _REFUSED:
            raise
        log.warning("%s", error.problem)
        return False
    return True
