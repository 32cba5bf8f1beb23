"""Why a task waits: nobody listens, everybody is held, others are first, an agent is dead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clearml_ext.server.snapshot import Snapshot
from clearml_ext.server.statuses import Status
from clearml_ext.server.tasks import may_wait
from clearml_ext.server.workers import HIDDEN_QUEUE, LiveWorker
from clearml_ext.settings import ClearmlSettings
from clearml_ext.topology.labels import fits, is_for_controllers
from mlops_ext.queues.check import Step
from mlops_ext.queues.explain import listing


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why one task waits.

    Attributes:
        text: what keeps it: the queue, the agents and the tasks, in a sentence.
        stuck: whether waiting alone will not help.
    """

    text: str
    stuck: bool = False


def explain(task: Mapping[str, Any], snapshot: Snapshot, ancestors: Iterable[str]) -> Explanation:
    """Why *task* waits, in *snapshot*; *ancestors* are the ids of the controllers above it."""
    name = f'step "{task.get("name")}"'
    number, status = str(task["id"]), task.get("status")
    place = next((queue for queue, ids in snapshot.entries.items() if number in ids), None)
    if place is not None and HIDDEN_QUEUE in place:
        return Explanation(text=f"{name} waits for its pod: Kubernetes has not started it")
    if status == Status.CREATED:
        return _stuck(f"{name} is in no queue: it could not be enqueued, or was taken out")
    if status != Status.QUEUED:
        return Explanation(text=f"{name} does not wait: it is {status}")
    given = str((task.get("execution") or {}).get("queue") or "")
    queue = place or snapshot.queue_name(given)
    if queue not in snapshot.queues.values():
        return _stuck(f"{name} waits in a queue that no longer exists")
    if place is None:
        why = f"is queued for {queue}, but is not in it: reset it, and enqueue it again"
        return _stuck(f"{name} {why}")
    return _explain_queue(name, number, queue, snapshot, set(ancestors))


def _explain_queue(
    name: str, number: str, queue: str, snapshot: Snapshot, ancestors: set[str]
) -> Explanation:
    waits = f"{name} waits in {queue}"
    command = f"clearml-agent daemon --queue {queue} --detached"
    listed = [worker for worker in snapshot.workers if queue in worker.queues]
    alive = [worker for worker in listed if worker.fresh]
    names = listing([worker.name for worker in alive])
    if not listed:
        return _stuck(f"{waits}: no agent listens to it; start one: {command}")
    if not alive:
        seen = ", ".join(f"{each.name} (last seen {each.age_s:.0f} s ago)" for each in listed)
        return _stuck(f"{waits}: its agents are dead: {seen}; start one: {command}")
    ahead = snapshot.entries.get(queue, ()).index(number)
    if ready := next((worker for worker in alive if snapshot.has_room(worker)), None):
        return Explanation(text=f"{waits}, with {ahead} before it: {ready.name} is free")
    held = [_holder(worker, snapshot, ancestors) for worker in alive]
    if all(held):
        why = f"nobody but {names} listens, and {', '.join(held)}; start another: {command}"
        return _stuck(f"{waits}: {why}")
    return Explanation(text=f"{waits}, with {ahead} before it; busy with other tasks: {names}")


def _stuck(text: str) -> Explanation:
    return Explanation(text=text, stuck=True)


def _holder(worker: LiveWorker, snapshot: Snapshot, ancestors: set[str]) -> str:
    """Which tasks hold all slots of *worker* while they wait for others, in words; "" if none."""
    tasks = snapshot.tasks_on(worker.name)
    if not all(task in ancestors or may_wait(snapshot.tasks.get(task)) for task in tasks):
        return ""
    if not tasks:
        return f"{worker.name} takes no task"
    names = [str((snapshot.tasks.get(task) or {}).get("name") or task) for task in tasks]
    return f'{worker.name} is held by controller "{names[0]}"' + (
        f" and {len(names) - 1} others" if len(names) > 1 else ""
    )


def free_queue(snapshot: Snapshot, settings: ClearmlSettings, without: str) -> str | None:
    """A queue like *without* whose agent is free and that nothing waits in, or None."""
    step, services = Step(name="step", queue=without), settings.services_queue
    for worker in filter(snapshot.has_room, snapshot.workers):
        for queue in worker.queues:
            taken = queue == without or snapshot.entries.get(queue)
            other = is_for_controllers(queue, snapshot.labels, services)
            if not (taken or other) and fits(step, queue, snapshot.labels):
                return queue
    return None
