"""The guard inside a process that runs or launches pipelines.

It stands at the two places every run passes: ``Task.enqueue``, and the moment a controller has
read its steps and has not launched the first (``PipelineController._prepare_pipeline``). Clones
from the web interface and reruns pass the second one on the agent.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from typing import Any

from clearml_ext.check.fixes import Fix, FixKind
from clearml_ext.check.plans import Node, Plan, plan_of_controller, plan_of_task
from clearml_ext.check.preflight import check_plan, preflight
from clearml_ext.check.results import Answer, Result
from clearml_ext.errors import UnsafePipelineError
from clearml_ext.server.client import Client
from clearml_ext.server.process import own_task_id
from clearml_ext.server.snapshot import take_snapshot
from clearml_ext.server.tasks import is_pipeline
from clearml_ext.settings import ClearmlSettings, load_settings
from mlops_ext.errors import MlopsExtError
from mlops_ext.files import publish

__all__ = [
    "IN_FORCE",
    "RUNTIME_KEY",
    "before_enqueue",
    "before_first_step",
    "choose_fix",
    "refuse",
    "report_check_only",
    "reroute",
]

log = logging.getLogger(__name__)

RUNTIME_KEY = "mlops_ext_queues"
"""Runtime property of a controller's task: JSON of old queue → new queue of its steps."""

IN_FORCE = "_mlops_ext_guarded"
"""Mark of a ``_prepare_pipeline`` that is guarded already."""

_passed = threading.local()
_checked: set[str] = set()
_APPLICABLE = (FixKind.CONTROLLER_QUEUE, FixKind.STEP_QUEUE, FixKind.LOCAL_CONTROLLER)


class passing:  # noqa: N801  # a context manager, used like a function
    """Within it, this thread enqueues what was checked already."""

    def __enter__(self) -> None:
        _passed.depth = getattr(_passed, "depth", 0) + 1

    def __exit__(self, *error: object) -> None:
        _passed.depth -= 1


def is_passing() -> bool:
    """Whether this thread enqueues what was checked already."""
    return bool(getattr(_passed, "depth", 0))


def choose_fix(result: Result, settings: ClearmlSettings, *, local: bool = True) -> Fix | None:
    """The first fix that can be applied from here, where the settings ask for one."""
    if not settings.fix:
        return None
    for kind in _APPLICABLE:
        for fix in result.fixes:
            if fix.kind is kind and (local or kind is not FixKind.LOCAL_CONTROLLER):
                return fix
    return None


def reroute(pipeline: Any, queues: tuple[tuple[str, str], ...]) -> None:
    """Send the steps of *pipeline* from the old queues to the new ones, on every later run too."""
    moved = dict(queues)
    if not moved:
        return
    default = getattr(pipeline, "_default_execution_queue", None)
    if default in moved:
        pipeline.set_default_execution_queue(moved[default])
    for node in list(pipeline._nodes.values()):  # noqa: SLF001  # the DAG has no public name
        if node.queue in moved:
            node.queue = moved[node.queue]
    task = getattr(pipeline, "_task", None)
    if task is not None:
        task._set_runtime_properties({RUNTIME_KEY: json.dumps(moved)})  # noqa: SLF001  # likewise


def remembered_queues(pipeline: Any) -> tuple[tuple[str, str], ...]:
    """The reroutes that the launcher left on the controller's task."""
    try:
        found = json.loads(pipeline._task._get_runtime_properties().get(RUNTIME_KEY) or "{}")  # noqa: SLF001  # likewise
        return tuple((str(old), str(new)) for old, new in found.items())
    except (AttributeError, ValueError, TypeError):
        return ()


def refuse(result: Result, settings: ClearmlSettings, task: Any = None) -> UnsafePipelineError:
    """The error to raise, after the task that was made for the launch is gone."""
    if _made_here(task) is not None:
        _delete(task)
    error = UnsafePipelineError(result)
    if settings.exit_on_refusal and own_task_id() is None:
        _leave(f"mlops-ext: {error}", 1 if result.answer is Answer.UNSAFE else 2)
    return error


def _leave(text: str, status: int) -> None:
    """End this process now: no hook of ClearML's gets to wait for what will not come."""
    sys.stdout.flush()
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
    os._exit(status)


def _is_component_call() -> bool:
    """Whether this process, which runs a step, launches a component of the step's pipeline."""
    from clearml import PipelineDecorator

    return getattr(PipelineDecorator, "_singleton", None) is not None


def _delete(task: Any) -> None:
    """Delete *task*, which was made for a launch that does not take place."""
    try:
        task.close()
        client = Client.from_configuration(load_settings().timeout_s)
        client.call("tasks.delete", {"task": str(task.id), "force": True})
    except Exception as error:  # noqa: BLE001  # the refusal matters more than the tidying
        log.warning("task %s is left over, it could not be deleted: %s", task.id, error)


def before_enqueue(
    task_id: str, queue: str | None, settings: ClearmlSettings, *, task: Any = None
) -> str | None:
    """Check a task that is about to be enqueued; returns the queue to use instead, or None.

    A controller is checked whole. A step of a controller was checked with it. What a step
    enqueues itself is checked as if the step were its controller: it holds a worker meanwhile.

    Raises:
        UnsafePipelineError: it could wait for ever, or that cannot be told.
    """
    if is_passing() or not queue:
        return None
    own = own_task_id()
    if task is not None and (
        str(getattr(task, "parent", None)) in _checked
        or (own is None and str(getattr(task, "task_type", "controller")) != "controller")
    ):
        return None
    try:
        client = Client.from_configuration(settings.timeout_s)
        snapshot = take_snapshot(client, settings, [task_id, *filter(None, [own])])
        document = snapshot.tasks.get(task_id)
        launched_here = own is not None and document is not None and document.get("parent") == own
        if document is not None and is_pipeline(document) and not launched_here:
            plan = _plan_here(task_id) or plan_of_task(document)
            result = check_plan(plan, queue, snapshot, settings, client=client)
            report_check_only(result, settings, task)
            return _settle(result, settings, task)
    except UnsafePipelineError:
        raise
    except MlopsExtError as caught:
        if own is not None:
            log.warning("task %s is enqueued unchecked: %s", task_id, caught)
            return None
        unknown = Result(target=task_id, answer=Answer.UNKNOWN, reasons=(str(caught),))
        raise refuse(unknown, settings, task) from caught
    if own is not None and own not in _checked:
        name = f"task {own[:8]}"
        node = Node(name=task_id[:8], queue=queue, base_task=task_id if document else None)
        plan = Plan(name=name, nodes=(node,), task=own)
        result = check_plan(plan, None, snapshot, settings, client=client, own_task=own)
        if result.answer is Answer.UNSAFE:
            error = refuse(result, settings)
            told = {"status_reason": "mlops-ext", "status_message": str(error)[:500]}
            client.call("tasks.failed", {"task": task_id, "force": True, **told})
            if _is_component_call():
                # The SDK only warns when this raises, and waits for the component for ever.
                _leave(f"mlops-ext: {error}", 1)
            raise error
    return None


def _plan_here(task_id: str) -> Plan | None:
    """The plan of a decorated pipeline of this process, whose task does not carry it yet."""
    from clearml import PipelineDecorator

    pipeline = getattr(PipelineDecorator, "_singleton", None)
    task = getattr(pipeline, "_task", None)
    if task is None or str(task.id) != task_id:
        return None
    return plan_of_controller(pipeline)


def _made_here(task: Any) -> Any:
    """*task* where it was made for the launch that is going on, else None: it is someone's own."""
    if task is None or _plan_here(str(task.id)) is not None:
        return task
    return task if str(task.status) == "in_progress" else None


def _settle(result: Result, settings: ClearmlSettings, task: Any) -> str | None:
    """The queue to use instead, None for the one that was meant, or a refusal."""
    if result.answer is Answer.SAFE:
        return None
    if result.answer is Answer.UNSAFE:
        fix = choose_fix(result, settings, local=False)
        if fix is not None and fix.kind is FixKind.CONTROLLER_QUEUE:
            log.warning("%s", fix.text)
            return fix.controller_queue
    raise refuse(result, settings, task)


def before_first_step(pipeline: Any, settings: ClearmlSettings) -> None:
    """Check a controller that is about to launch its first step, in the process that runs it.

    Raises:
        UnsafePipelineError: it could hang for ever; its task is marked as failed.
    """
    task = getattr(pipeline, "_task", None)
    if task is None or _runs_steps_here(pipeline):
        return
    reroute(pipeline, remembered_queues(pipeline))
    plan = plan_of_controller(pipeline)
    result = preflight(plan, None, settings, own_task=str(task.id))
    _checked.add(str(task.id))
    report_check_only(result, settings, task)
    if result.answer is Answer.UNSAFE:
        fix = choose_fix(result, settings, local=False)
        if fix is not None and fix.queues:
            log.warning("%s", fix.text)
            reroute(pipeline, fix.queues)
            return
    elif result.answer is Answer.SAFE:
        return
    if own_task_id() is None:
        raise refuse(result, settings, task)
    if result.answer is Answer.UNKNOWN:
        log.warning("the pipeline goes on unchecked: %s", "; ".join(result.reasons))
        return
    error = refuse(result, settings)
    task.mark_failed(
        status_reason="mlops-ext: it could wait for ever",
        status_message=str(error)[:500],
        force=True,
    )
    raise error


def _runs_steps_here(pipeline: Any) -> bool:
    """Whether steps are run as sub-processes, and no queue is waited in."""
    return "Local" in getattr(pipeline._clearml_job_class, "__name__", "")  # noqa: SLF001  # the only sign of it


def report_check_only(result: Result, settings: ClearmlSettings, task: Any) -> None:
    """In a check, write the result, remove the task, and leave before anything is enqueued."""
    if settings.check_only is None:
        return
    publish(settings.check_only, [result.to_json().encode()])
    if _made_here(task) is not None:
        _delete(task)
    os._exit(0)
