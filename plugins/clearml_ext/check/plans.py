"""What a pipeline will enqueue, and where: read from its nodes, or from its task on the server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from clearml_ext import sdk
from clearml_ext.errors import PlanError
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import Snapshot, fetch_tasks
from clearml_ext.server.statuses import LIVE, Status
from clearml_ext.server.tasks import (
    Launched,
    declared_queues,
    is_pipeline,
    launched_by_task,
    may_wait,
    needs_of,
    queues_of_automation,
    steps_on_task,
)
from clearml_ext.server.workers import value_at
from clearml_ext.topology.labels import take_slots
from mlops_ext.queues.check import Pipeline, Step, Worker

_MAX_DEPTH = 20
_REFERENCE = re.compile(r"\$\{pipeline\.([^}]+)\}")
# Types of tasks that run until somebody stops them.
_ENDLESS = frozenset({"service", "monitor", "application"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A step as its pipeline describes it.

    Attributes:
        name: its name.
        queue: name or id of its queue, references filled in; "" if it has none.
        parents: names of the steps before it.
        base_task: id of the task it is cloned from, or None.
        job: id of its own task where it was launched already, or None.
        ended: whether it is over.
    """

    name: str
    queue: str
    parents: tuple[str, ...] = ()
    base_task: str | None = None
    job: str | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A pipeline: its steps and their queues.

    Attributes:
        name: its name.
        nodes: its steps.
        task: id of its controller's task, or None where it has none yet.
    """

    name: str
    nodes: tuple[Node, ...]
    task: str | None = None

    @property
    def launched(self) -> Launched:
        """The tasks of its steps."""
        return Launched(
            ids=frozenset(each.job for each in self.nodes if each.job),
            names=frozenset(each.name for each in self.nodes if not each.job),
        )

    @property
    def base_tasks(self) -> list[str]:
        """Ids that may turn out to be sub-pipelines."""
        return [
            each
            for node in self.nodes
            if not node.ended
            for each in (node.job, node.base_task)
            if each
        ]


def plan_of_controller(pipeline: Any) -> Plan:
    """Read the plan of a ``PipelineController`` in this process."""
    values = {str(name): value for name, value in dict(pipeline.get_parameters()).items()}
    task = sdk.task_of(pipeline)
    name, number = ("pipeline", None) if task is None else (str(task.name), str(task.id))
    return _plan(name, sdk.steps_of(pipeline), None, values.get, number)


def plan_of_components(
    name: str, components: Iterable[Mapping[str, Any]], default: str | None
) -> Plan:
    """Plan a decorated pipeline: its order is unknown, so all components run at once."""
    steps = {
        str(each["name"]): {"queue": each.get("execution_queue"), "draft": each.get("draft")}
        for each in components
    }
    return _plan(name, steps, default)


def plan_of_task(document: Mapping[str, Any]) -> Plan:
    """Read the plan that a controller's task carries.

    Raises:
        PlanError: it cannot be read.
    """
    name = str(document.get("name") or document["id"])
    sections: Mapping[str, Any] = document.get("hyperparams") or {}
    default = _parameter(sections, "pipeline", "default_queue")

    def value(reference: str) -> object:
        return next(
            (
                found
                for section in ("Args", *sections)
                if (found := _parameter(sections, section, reference)) is not None
            ),
            None,
        )

    return _plan(name, steps_on_task(document), default, value, str(document["id"]))


def plan_of_waiting_task(
    document: Mapping[str, Any], children: Iterable[Mapping[str, Any]] = ()
) -> Plan | None:
    """Plan what a task that is no pipeline waits for; None if for nothing, or if that is unknown.

    Its tags say so, or the SDK's schedulers, triggers and optimizers are recognised by what they
    keep on their task; *children* are tasks of its own that wait now.
    """
    queues = [*declared_queues(document), *queues_of_automation(document)]
    queues += [str((each.get("execution") or {}).get("queue") or "") for each in children]
    nodes = tuple(
        Node(name=f"task in {queue}", queue=queue) for queue in dict.fromkeys(queues) if queue
    )
    name = str(document.get("name") or document["id"])
    return Plan(name=name, nodes=nodes, task=str(document["id"])) if nodes else None


def _parameter(sections: Mapping[str, Any], section: str, name: str) -> object:
    found: object = value_at(sections, section, name)
    return None if found in ("", "None") else found


def _plan(
    name: str,
    steps: Mapping[str, Mapping[str, Any]],
    default: object,
    value: Callable[[str], object] = lambda _: None,
    task: str | None = None,
) -> Plan:
    nodes = tuple(
        _node(name, step, fields, default, value)
        for step, fields in steps.items()
        if not fields.get("draft")
    )
    return Plan(name=name, nodes=nodes, task=task)


def _node(
    pipeline: str,
    name: str,
    fields: Mapping[str, Any],
    default: object,
    value: Callable[[str], object],
) -> Node:
    text = str(fields.get("queue") or default or "")
    for reference in _REFERENCE.findall(text):
        if (found := value(reference)) is None:
            raise PlanError(
                pipeline, f'the queue of step "{name}" is {text}, and {reference} has no value'
            )
        text = text.replace(f"${{pipeline.{reference}}}", str(found))
    if "${" in text:
        raise PlanError(pipeline, f'the queue of step "{name}" is {text}, known only when it runs')
    return Node(
        name=name,
        queue=text,
        parents=tuple(str(each) for each in fields.get("parents") or ()),
        base_task=fields.get("base_task_id") or None,
        job=fields.get("job_id") or None,
        ended=bool(fields.get("executed")),
    )


def resolve(plan: Plan, snapshot: Snapshot, client: Client | None) -> tuple[Step, ...]:
    """Resolve *plan* to the steps that have not ended, with sub-pipelines' steps below them.

    Raises:
        PlanError: a step has no queue, or a sub-pipeline cannot be read.
        UnknownNameError: a step goes to a queue that does not exist.
    """
    known = dict(snapshot.tasks)

    def steps_of(part: Plan, depth: int) -> tuple[Step, ...]:
        if depth > _MAX_DEPTH:
            raise PlanError(part.name, "its sub-pipelines contain each other")
        missing = [each for each in part.base_tasks if each not in known and depth]
        if missing and client is not None:
            known.update(fetch_tasks(client, missing))
        left = {node.name for node in part.nodes if not node.ended}
        steps = []
        for node in part.nodes:
            if node.ended:
                continue
            if not node.queue:
                raise PlanError(
                    part.name, f'step "{node.name}" has no queue, nor is there a default'
                )
            own, base = known.get(node.job or ""), known.get(node.base_task or "")
            inner = own if is_pipeline(own) else base
            nested: tuple[Step, ...] = ()
            if inner is not None and is_pipeline(inner):
                below = plan_of_task(inner)
                nested = steps_of(below if inner is own else from_the_start(below), depth + 1)
            steps.append(
                Step(
                    name=node.name,
                    queue=snapshot.require_queue(node.queue),
                    after=tuple(each for each in node.parents if each in left),
                    needs=needs_of(own or base),
                    steps=nested,
                )
            )
        return tuple(steps)

    return steps_of(plan, 0)


def from_the_start(plan: Plan) -> Plan:
    """Return *plan* with nothing launched yet, as a new run has it."""
    return replace(plan, nodes=tuple(replace(each, ended=False, job=None) for each in plan.nodes))


def running_pipelines(
    snapshot: Snapshot, client: Client | None, without: Plan | None = None
) -> tuple[tuple[Worker, ...], tuple[Pipeline, ...], tuple[str, ...]]:
    """Find what others run: the slots they leave, their pipelines, and notes on what is unknown.

    A sub-pipeline is part of the pipeline that launched it. That of *without* is left out. A task
    that keeps its slot without an end, such as a service, takes it away.
    """
    usable = {each.name for each in snapshot.usable_workers()}
    children = _waiting_children(snapshot)
    active = {
        number: document
        for number, document in snapshot.tasks.items()
        if (may_wait(document) or number in children)
        and document.get("status") in LIVE
        and (number in snapshot.running or document.get("status") == Status.QUEUED)
    }
    launched = {
        number: launched_by_task(each) for number, each in active.items() if is_pipeline(each)
    }
    if without is not None and without.task is not None:
        active.pop(without.task, None)
        launched[without.task] = without.launched
    pipelines, notes, taken = list(snapshot.others), [], []
    for number, document in active.items():
        above = launched.get(str(document.get("parent")))
        if above is not None and above.includes(document):
            continue
        name = f"{document.get('name')} ({number[:8]})"
        worker = snapshot.running.get(number)
        queue = str((document.get("execution") or {}).get("queue") or "")
        try:
            plan: Plan | None = plan_of_task(document) if is_pipeline(document) else None
            if plan is None:
                plan = plan_of_waiting_task(document, children.get(number, ()))
            steps = resolve(plan, snapshot, client) if plan is not None else ()
        except Exception as error:  # noqa: BLE001  # somebody else's pipeline: told, not fatal
            notes.append(f"{name} runs too, and could not be taken into account: {error}")
            continue
        if not steps:
            if plan is None and worker in usable and document.get("type") in _ENDLESS:
                taken.append(str(worker))
            continue
        waits = worker is None and queue in snapshot.queues
        pipelines.append(
            Pipeline(
                name=name,
                queue=snapshot.queue_name(queue) if waits else None,
                worker=worker if worker in usable else None,
                steps=steps,
            )
        )
    return take_slots(snapshot.usable_workers(), taken), tuple(pipelines), tuple(notes)


def _waiting_children(snapshot: Snapshot) -> dict[str, list[Mapping[str, Any]]]:
    """The tasks that wait, by the running task that made them.

    The server calls a clone a child of what it was cloned from; it runs the same script.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for child in snapshot.tasks.values():
        parent = snapshot.tasks.get(str(child.get("parent") or ""))
        if parent is None or child.get("status") != Status.QUEUED or is_pipeline(parent):
            continue
        number = str(parent["id"])
        scripts = [(each.get("script") or {}).get("entry_point") for each in (parent, child)]
        if number in snapshot.running and (may_wait(parent) or scripts[0] != scripts[1]):
            found.setdefault(number, []).append(child)
    return found
