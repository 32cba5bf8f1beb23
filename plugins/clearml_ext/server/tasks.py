"""The tasks of a pipeline: which there are, and how they are moved, failed and stopped.

The server does not say which tasks a controller launched. A clone has the same parent as a step,
and must be left alone; the controller's own state tells them apart.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clearml_ext.errors import PlanError, ServerError
from clearml_ext.sdk import is_draft, job_id_of, nodes_of
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import Snapshot

log = logging.getLogger(__name__)

_FIELDS = ["id", "name", "type", "status", "status_message", "parent", "execution.queue", "started",
           "system_tags", "last_worker"]  # fmt: skip
_PLAN_FIELDS = ["configuration.Pipeline", "runtime"]
_LIVE = ("queued", "in_progress", "created")
_REFUSED = 400

_RUN_MARK = "_pipeline_hash"
"""Runtime property by which the SDK knows that a controller has run before, and takes it up."""


def is_pipeline(document: Mapping[str, Any] | None) -> bool:
    """Whether a task is a pipeline's controller."""
    return document is not None and (
        "pipeline" in (document.get("system_tags") or []) and document.get("type") == "controller"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """Which of the tasks that name another as their parent were launched by it.

    Not all of them: the server gives a clone the parent of the task that it was cloned from, or
    that task itself. A clone of a pipeline from the web interface names the pipeline as its
    parent, and so does the clone of a step. They are runs of their own.

    Attributes:
        ids: the tasks that are known to be launched.
        names: names of the steps whose tasks are not known yet: a step's task has its name.
        everything: whether no clone can be told apart, and all of them count.
    """

    ids: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    everything: bool = False

    def includes(self, task: Mapping[str, Any]) -> bool:
        """Whether *task*, which names the other as its parent, was launched by it."""
        return self.everything or str(task["id"]) in self.ids or task.get("name") in self.names


def steps_on_task(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The steps that a controller's task carries, name → fields, as far as this run has come.

    A clone carries the state of the run it was cloned from, and starts from the beginning.

    Raises:
        PlanError: they cannot be read.
    """
    entry = (document.get("configuration") or {}).get("Pipeline") or {}
    text = entry.get("value") if isinstance(entry, dict) else None
    try:
        dag = json.loads(text) if text else {}
        steps = {str(name): dict(fields) for name, fields in dag.items()}
    except (ValueError, TypeError, AttributeError) as error:
        name = str(document.get("name") or document["id"])
        raise PlanError(name, "the steps on its task are not readable") from error
    if _RUN_MARK not in (document.get("runtime") or {}):
        for fields in steps.values():
            fields.update(executed=None, job_id=None)
    return steps


def launched_by_task(document: Mapping[str, Any]) -> Launched:
    """What the task *document*, as the server has it, launched."""
    if document and not is_pipeline(document):
        return Launched(everything=True)  # a step that calls components: it lists them nowhere
    try:
        steps = steps_on_task(document).items()
    except PlanError:
        return Launched()
    known = {name: each.get("job_id") or each.get("executed") for name, each in steps}
    return Launched(
        ids=frozenset(str(each) for each in known.values() if each),
        names=frozenset(name for name, each in steps if not known[name] and not each.get("draft")),
    )


def launched_by_controller(pipeline: Any) -> Launched:
    """What the ``PipelineController`` of this process launched."""
    nodes = [each for each in nodes_of(pipeline) if not is_draft(each)]
    known = {each.name: job_id_of(each) or each.executed for each in nodes}
    return Launched(
        ids=frozenset(str(each) for each in known.values() if each),
        names=frozenset(str(name) for name, each in known.items() if not each),
    )


def pipeline_tasks(
    client: Client, controller: str, launched: Launched | None = None
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """The controller's document and those of the tasks that it launched.

    Args:
        client: asks the server.
        controller: id of the controller's task.
        launched: what it launched, by default what its task says: the controller writes that some
            seconds later.
    """
    own_fields = _FIELDS if launched is not None else _FIELDS + _PLAN_FIELDS
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
        _, children = pipeline_tasks(client, pending.pop(), launched)
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


def fail_task(client: Client, task: str, text: str) -> None:
    """Mark *task* as failed because of *text*, whatever its status.

    Raises:
        ServerError: the server does not answer, or does not do it.
    """
    told = {"status_reason": "mlops-ext", "status_message": text[:500]}
    client.call("tasks.failed", {"task": task, "force": True, **told})
