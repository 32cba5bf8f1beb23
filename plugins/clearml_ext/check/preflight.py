"""The check before a launch: the pipeline, those that run already, and the live workers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from clearml_ext.check.fixes import Fix, FixKind, separate, services_command
from clearml_ext.check.plans import (
    Plan,
    plan_of_task,
    plan_of_waiting_task,
    resolve,
    running_pipelines,
)
from clearml_ext.check.results import Answer, Result, examine
from clearml_ext.errors import UndeclaredError
from clearml_ext.sdk import own_task_id
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import Snapshot, take_snapshot
from clearml_ext.server.tasks import is_pipeline, may_wait
from clearml_ext.settings import ClearmlSettings
from clearml_ext.topology.labels import all_steps
from mlops_ext.errors import MlopsExtError, UnknownNameError
from mlops_ext.queues.check import Pipeline, Step, Topology
from mlops_ext.settings import environment


def check_live(
    plan: Plan,
    queue: str | None,
    settings: ClearmlSettings,
    *,
    client: Client | None = None,
    own_task: str | None = None,
    **more: Any,
) -> Result:
    """Check a launch of *plan* with its controller in *queue* against a new snapshot.

    The arguments are those of `check_plan`; the client is by default the one that ClearML is
    configured for.
    """
    try:
        client = client or Client.from_configuration(settings.timeout_s)
        wanted = [*plan.base_tasks, *filter(None, [own_task])]
        snapshot = take_snapshot(client, settings, wanted)
        return check_plan(plan, queue, snapshot, settings, client=client, own_task=own_task, **more)
    except MlopsExtError as error:
        return Result(target=plan.name, answer=Answer.UNKNOWN, reasons=(str(error),))


def check_enqueue(
    task: str,
    queue: str,
    settings: ClearmlSettings,
    *,
    client: Client | None = None,
    plan: Plan | None = None,
) -> Result:
    """Check what enqueueing *task* leads to; *plan* is its pipeline, if this process knows it."""
    try:
        client = client or Client.from_configuration(settings.timeout_s)
        snapshot = take_snapshot(client, settings, [task])
        name = str((snapshot.tasks.get(task) or {}).get("name") or task)
        found = check_enqueued(task, queue, snapshot, settings, client=client, plan=plan)
        return found or Result(target=name, answer=Answer.SAFE)
    except MlopsExtError as error:
        return Result(target=task, answer=Answer.UNKNOWN, reasons=(str(error),))


def check_enqueued(
    task: str,
    queue: str,
    snapshot: Snapshot,
    settings: ClearmlSettings,
    *,
    client: Client,
    plan: Plan | None = None,
) -> Result | None:
    """Check what enqueueing *task* leads to; None if the task waits for no other task.

    Raises:
        PlanError: it waits for others, and which ones cannot be told.
    """
    document = snapshot.tasks.get(task)
    if document is None or not may_wait(document):
        return None
    if plan is None and is_pipeline(document):
        plan = plan_of_task(document)
    plan = plan or plan_of_waiting_task(document)
    if plan is None:
        raise UndeclaredError(str(document.get("name") or task))
    return check_plan(plan, queue, snapshot, settings, client=client)


def check_plan(  # noqa: PLR0913  # all that a launch consists of
    plan: Plan,
    queue: str | None,
    snapshot: Snapshot,
    settings: ClearmlSettings,
    *,
    client: Client,
    instances: int = 1,
    own_task: str | None = None,
    alone: bool = False,
) -> Result:
    """Check a launch of *plan* with its controller in *queue*.

    Args:
        plan: what the pipeline enqueues.
        queue: where its controller goes; None where it runs outside of the agents.
        snapshot: what the server knew a moment ago.
        settings: how to check.
        client: asks the server for what the snapshot lacks.
        instances: how many of it are launched at the same time.
        own_task: id of the controller where it runs already: it holds its worker.
        alone: leave out what others run: they came after this one was accepted.

    Returns:
        SAFE, UNSAFE with the reasons, or UNKNOWN if the plan cannot be read.
    """
    holder, own_queue = _own_place(snapshot, own_task)
    try:
        steps = resolve(plan, snapshot, client)
        name = (
            snapshot.require_queue(queue) if queue is not None and own_task is None else own_queue
        )
    except UnknownNameError as error:
        missing = queue == settings.services_queue and queue not in snapshot.names
        return Result(
            target=plan.name,
            answer=Answer.UNSAFE,
            reasons=(f"{plan.name}: {error}",),
            advice=(f"start {services_command(queue)}",) if missing and queue else (),
        )
    beside = (snapshot.usable_workers(), (), ())
    workers, others, unread = beside if alone else running_pipelines(snapshot, client, without=plan)
    mine = Pipeline(name=plan.name, queue=name, steps=steps, instances=instances, worker=holder)
    topology = Topology(
        workers=workers,
        pipelines=(mine, *others),
        queues=tuple(snapshot.names),
        labels=snapshot.labels,
    )
    notes = [*snapshot.notes, *unread, *_dead(snapshot, topology)]
    result = examine(plan.name, topology, notes, settings.services_queue, mine=plan.name)
    fixes = tuple(fix for fix in result.fixes if _concerns_only(fix, topology, plan.name))
    if (
        result.answer is Answer.SAFE
        and own_task is None
        and name is not None
        and name in _queues_of(steps)
    ):
        return _separate(result, plan, name, topology, settings)
    return dataclasses.replace(result, fixes=fixes)


def _own_place(snapshot: Snapshot, own_task: str | None) -> tuple[str | None, str | None]:
    """The worker that runs *own_task*, or, before the server reports it, the queue it came from."""
    if own_task is None:
        return None, None
    document = snapshot.tasks.get(own_task) or {}
    usable = {each.name for each in snapshot.usable_workers()}
    reported = (snapshot.running.get(own_task), document.get("last_worker"))
    for worker in (*reported, environment().get("CLEARML_WORKER_ID")):
        if worker in usable:
            return str(worker), None
    queue = snapshot.queue_name(str((document.get("execution") or {}).get("queue") or ""))
    return None, queue if own_task_id() == own_task and queue in snapshot.names else None


def _separate(
    result: Result, plan: Plan, queue: str, topology: Topology, settings: ClearmlSettings
) -> Result:
    """Refuse: the controller shares a queue with its own steps.

    The capacity of this moment would do, but one agent less and it would not.
    """
    reason = (
        f"{plan.name}: its controller and its steps both go to {queue}: a controller must have"
        f" a queue that no step uses, such as {settings.services_queue}"
    )
    fixes = tuple(separate(topology, plan.name, settings.services_queue))
    return dataclasses.replace(result, answer=Answer.UNSAFE, reasons=(reason,), fixes=fixes)


def _queues_of(steps: Sequence[Step]) -> set[str]:
    """The queues of plain steps, sub-pipelines' included."""
    return {step.queue for step in all_steps(steps) if not step.steps}


def _dead(snapshot: Snapshot, topology: Topology) -> Iterable[str]:
    """Notes on workers that are listed but no longer report, on the queues that matter."""
    used: set[str] = set()
    for pipeline in topology.pipelines:
        used |= {pipeline.queue or "", *_queues_of(pipeline.steps)}
    for worker in snapshot.workers:
        if not worker.fresh and used & set(worker.queues):
            yield (
                f"worker {worker.name} is listed for {', '.join(worker.queues)}, but was last seen"
                f" {worker.age_s:.0f} s ago: it counts as dead"
            )


def _concerns_only(fix: Fix, topology: Topology, name: str) -> bool:
    """Whether *fix* leaves the pipelines of others alone."""
    if fix.kind is FixKind.NEW_AGENT:
        return True
    others = [each for each in topology.pipelines if each.name != name]
    return all(each in fix.topology.pipelines for each in others)
