"""The tasks of a pipeline: which there are, and how they are moved, failed and stopped.

The server does not say which tasks a controller launched. A clone has the same parent as a step,
and must be left alone; the controller's own state tells them apart.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from clearml_ext.errors import PlanError, ServerError
from clearml_ext.sdk import steps_of
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import Snapshot
from clearml_ext.server.statuses import LIVE, Status
from clearml_ext.server.workers import json_in, parse_time, value_at

log = logging.getLogger(__name__)

_FIELDS = ["id", "name", "type", "status", "status_message", "status_reason", "parent",
           "execution.queue", "started", "system_tags", "last_worker"]  # fmt: skip
_CONTENT = ["id", "type", "system_tags", "created", "parent", "last_worker_report", "models",
            "execution.artifacts", "last_metrics"]  # fmt: skip
# What the server's clock, told in whole seconds, and the process's start may be off.
_CLOCK_S = 2.0
_PLAN_FIELDS = ["configuration.Pipeline", "runtime"]

# Types of tasks that start others, and hold their agent meanwhile.
WAITING_TYPES = frozenset({"controller", "service", "monitor", "optimizer", "application"})
# Tag of a task that waits for tasks in a queue, if nothing else tells.
WAITS_FOR = "waits-for:"
# Configuration in which schedulers and triggers of the SDK keep their jobs.
AUTOMATION_SECTIONS = ("schedule", "datasets", "models", "tasks")
# Reasons that an agent, and the SDK, give for a task that somebody aborted.
_ABORTS = frozenset({"task was stopped by tasks.stop", "user abort", "USER ABORTED"})
# Runtime property by which the SDK knows that a controller has run before, and takes it up.
_RUN_MARK = "_pipeline_hash"


def is_pipeline(document: Mapping[str, Any] | None) -> bool:
    """Whether a task is a pipeline's controller, or has a pipeline in it, whatever its type."""
    known = document or {}
    marked = "pipeline" in (known.get("system_tags") or []) and known.get("type") == "controller"
    return marked or bool(value_at(known, "configuration", "Pipeline"))


def may_wait(document: Mapping[str, Any] | None) -> bool:
    """Whether a task holds its agent while other tasks run, as far as its type and tags tell."""
    known = document or {}
    declared = bool(declared_queues(known))
    return declared or is_pipeline(known) or known.get("type") in WAITING_TYPES


def declared_queues(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The queues that a task says it waits for: tags ``waits-for:QUEUE``."""
    return _tagged(document, WAITS_FOR)


def _tagged(document: Mapping[str, Any], prefix: str) -> tuple[str, ...]:
    tags = (str(tag) for tag in document.get("tags") or [])
    return tuple(tag.removeprefix(prefix).strip() for tag in tags if tag.startswith(prefix))


def needs_of(document: Mapping[str, Any] | None) -> tuple[str, ...]:
    """The labels that a task's machine must have: its tags ``needs:LABEL``."""
    return _tagged(document or {}, "needs:")


def queues_of_automation(document: Mapping[str, Any]) -> tuple[str, ...]:
    """The queues that a scheduler, a trigger or an optimizer of the SDK puts its tasks in."""
    found: list[object] = []
    for section in AUTOMATION_SECTIONS:
        with contextlib.suppress(ValueError, TypeError):
            jobs = json_in(document, section) or ()
            found += [each.get("queue") for each in jobs if isinstance(each, dict)]
    found.append(value_at(document, "hyperparams", "General", "opt/execution_queue"))
    return tuple(dict.fromkeys(str(each) for each in found if each))


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """Which of the tasks that name another as their parent were launched by it.

    Not all of them: the server gives a clone the parent of the task that it was cloned from, or
    that task itself. A clone of a pipeline from the web interface names the pipeline as its
    parent, and so does the clone of a step. They are runs of their own.

    Attributes:
        ids: the tasks that are known to be launched.
        names: names of the steps whose tasks are not known yet: a step's task has its name.
        queues: where each task whose id is known was to be enqueued, by name or id.
        everything: whether no clone can be told apart, and all of them count.
    """

    ids: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    queues: Mapping[str, str] = field(default_factory=dict)
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
    try:
        dag = json_in(document, "Pipeline") or {}
        steps = {str(name): dict(fields) for name, fields in dag.items()}
        for fields in steps.values():
            fields["parents"] = list(fields.get("parents") or ())
    except (ValueError, TypeError, AttributeError) as error:
        name = str(document.get("name") or document["id"])
        raise PlanError(name, "the steps on its task are not readable") from error
    if _RUN_MARK not in (document.get("runtime") or {}):
        for fields in steps.values():
            fields.update(executed=None, job_id=None)
    return steps


def launched_by_task(document: Mapping[str, Any]) -> Launched:
    """Find what the task *document* launched, from its state on the server."""
    if document and not is_pipeline(document):
        return Launched(everything=True)  # a step that calls components: it lists them nowhere
    try:
        return _launched(steps_on_task(document))
    except PlanError:
        return Launched()


def launched_by_controller(pipeline: Any) -> Launched:
    """Find what the ``PipelineController`` of this process launched."""
    return _launched(steps_of(pipeline))


def _launched(steps: Mapping[str, Mapping[str, Any]]) -> Launched:
    known = {
        name: (str(each.get("job_id") or each.get("executed") or ""), each.get("queue"))
        for name, each in steps.items()
        if not each.get("draft")
    }
    return Launched(
        ids=frozenset(number for number, _ in known.values() if number),
        names=frozenset(name for name, (number, _) in known.items() if not number),
        queues={number: str(queue) for number, queue in known.values() if number and queue},
    )


def is_aborted(document: Mapping[str, Any]) -> bool:
    """Whether somebody asked for the end of a task, as the server and the agents write it down.

    A task whose worker was lost is stopped too, by the server's own watchdog: what it launched
    goes on, and so does the pipeline once its agent is back
    (https://github.com/clearml/clearml/issues/1439).
    """
    message, reason = str(document.get("status_message")), document.get("status_reason")
    if document.get("status") == Status.IN_PROGRESS:
        return message == "stopping"
    if document.get("status") != Status.STOPPED:
        return False
    return message.startswith("Stopped by ") or reason in _ABORTS


def pipeline_tasks(
    client: Client, controller: str, launched: Launched | None = None
) -> tuple[Mapping[str, Any], list[Mapping[str, Any]]]:
    """Fetch the controller's document and those of the tasks that it launched.

    Args:
        client: asks the server.
        controller: id of the controller's task.
        launched: what it launched, by default what its task says: the controller writes that some
            seconds later.
    """
    own_fields = _FIELDS if launched is not None else _FIELDS + _PLAN_FIELDS
    own = next(iter(client.tasks(own_fields, id=[controller])), {})
    if launched is None:
        launched = launched_by_task(own)
    children = client.tasks(_FIELDS, parent=controller)
    return own, [child for child in children if launched.includes(child)]


def move_task(client: Client, snapshot: Snapshot, task: str, here: str, queue: str) -> bool:
    """Move *task* from queue *here* to *queue*; False if an agent took it first.

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
    """Stop what *controller* launched, and what these tasks launched; returns the names.

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
        for child in sorted(children, key=lambda each: each.get("status") != Status.QUEUED):
            number = str(child["id"])
            if child.get("status") not in LIVE or number in seen:
                continue
            seen.add(number)
            pending.append(number)
            if _stop(client, child):
                stopped.append(str(child.get("name")))
    return stopped


def _stop(client: Client, task: Mapping[str, Any]) -> bool:
    """Stop one task that waits, runs or is not enqueued yet; returns whether the server did."""
    number, status = str(task["id"]), task.get("status")
    queue = (task.get("execution") or {}).get("queue")
    place = {"queue": queue, "task": number}
    if status == Status.QUEUED and not (queue and _accepted(client, "queues.remove_task", place)):
        status = Status.IN_PROGRESS  # an agent was faster
    reason: dict[str, object] = {"task": number, "status_reason": "its pipeline was aborted"}
    if status == Status.IN_PROGRESS:
        return _accepted(client, "tasks.stop", reason)
    # The server stops a task that is not enqueued only by force.
    return _accepted(client, "tasks.stopped", {**reason, "force": True})


def _accepted(client: Client, endpoint: str, request: Mapping[str, object]) -> bool:
    """Send a request; False if the server answers that the task's state forbids it."""
    try:
        client.call(endpoint, request)
    except ServerError as error:
        if error.status != HTTPStatus.BAD_REQUEST:
            raise
        log.warning("%s", error.problem)
        return False
    return True


def reason_to_keep(client: Client, task: str, age_s: float) -> str:
    """Why *task* must not be deleted, or "" if nothing but this process's launch is in it.

    Args:
        client: asks the server.
        task: id of a task that this process takes for its own.
        age_s: seconds since this process started; an older task is not its own.

    Raises:
        ServerError: the server does not answer.
    """
    document = next(iter(client.tasks(_CONTENT, id=[task])), None)
    if document is None or client.server_time is None:
        return "the server does not know it"
    began = client.server_time - dt.timedelta(seconds=age_s + _CLOCK_S)
    created = parse_time(document.get("created"))
    models = document.get("models") or {}
    reasons = {
        "it was created before this process": created is None or created < began,
        "it is not a pipeline's controller": not is_pipeline(document),
        "it belongs to another task": bool(document.get("parent")),
        "it ran on an agent": bool(document.get("last_worker_report")),
        "it has artifacts": bool((document.get("execution") or {}).get("artifacts")),
        "it has models": bool(models.get("input") or models.get("output")),
        "it has scalars": bool(document.get("last_metrics")),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def fail_task(client: Client, task: str, text: str) -> None:
    """Mark *task* as failed because of *text*, whatever its status.

    Raises:
        ServerError: the server does not answer, or refuses.
    """
    told = {"status_reason": "mlops-ext", "status_message": text[:500]}
    client.call("tasks.failed", {"task": task, "force": True, **told})
