"""The guard inside a process that runs or launches pipelines.

It stands at the two places every run passes: ``Task.enqueue``, and the moment a controller has
read its steps and has not launched the first. Clones from the web interface and reruns pass the
second one on the agent.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clearml_ext import sdk
from clearml_ext.check.fixes import Fix, FixKind
from clearml_ext.check.plans import Node, Plan, plan_of_controller, plan_of_task
from clearml_ext.check.preflight import check_live, check_plan
from clearml_ext.check.results import Answer, Result, UnsafePipelineError
from clearml_ext.decision import AT_ENQUEUE, AT_FIRST_STEP, AT_LAUNCH, Refuse, Reroute, decide
from clearml_ext.sdk import own_task_id
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import Snapshot, take_snapshot
from clearml_ext.server.tasks import fail_task, is_pipeline
from clearml_ext.settings import ClearmlSettings
from mlops_ext.errors import MlopsExtError
from mlops_ext.files import publish
from mlops_ext.processes.exits import exit_now

log = logging.getLogger(__name__)

_launch = threading.local()
_checked: set[str] = set()


@contextmanager
def already_checked(settings: ClearmlSettings) -> Iterator[None]:
    """Within it, this thread enqueues what was checked already, with *settings*."""
    before = current_settings()
    _launch.settings = settings
    try:
        yield
    finally:
        _launch.settings = before


def current_settings() -> ClearmlSettings | None:
    """The settings of the launch that this thread is in, or None."""
    return getattr(_launch, "settings", None)


def is_already_checked() -> bool:
    """Whether this thread enqueues what was checked already."""
    return current_settings() is not None


def judge(
    result: Result, settings: ClearmlSettings, applicable: tuple[FixKind, ...], task: Any = None
) -> Fix | None:
    """The fix to apply to a checked pipeline, or None if it is safe as it is.

    Args:
        result: what the check found out.
        settings: whether to reroute.
        applicable: the kinds of fixes that the caller can apply.
        task: the controller's task; if it was made for this launch, a refusal deletes it.

    Raises:
        UnsafePipelineError: the pipeline must not be launched.
    """
    exit_if_check_only(result, settings, task)
    decision = decide(result, settings, applicable)
    if isinstance(decision, Refuse):
        discard_task(task, settings)
        _show_refusals_without_traceback()
        _report(result, settings)
        raise UnsafePipelineError(result)
    if not isinstance(decision, Reroute):
        return None
    log.warning("%s", decision.fix.text)
    return decision.fix


def exit_if_check_only(result: Result, settings: ClearmlSettings, task: Any) -> None:
    """In a check, write the result, remove the task, and end before anything is enqueued."""
    if settings.check_only:
        _report(result, settings)
        discard_task(task, settings)
        exit_now(0)


def _report(result: Result, settings: ClearmlSettings) -> None:
    """Tell the command line, if it started this process, what came out."""
    if settings.report is not None:
        publish(settings.report, [result.to_json().encode()])


def _show_refusals_without_traceback() -> None:
    """Let a refusal that ends the script be its message: it says where, why and what to do."""
    before = sys.excepthook

    def show(kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, UnsafePipelineError):
            error.__cause__, error.__suppress_context__ = None, True
            error.__traceback__ = traceback = None
        before(kind, error, traceback)

    sys.excepthook = show


def discard_task(task: Any, settings: ClearmlSettings) -> None:
    """Delete *task* if it was made for a launch that does not take place."""
    if task is None or not (_is_decorated(str(task.id)) or str(task.status) == "in_progress"):
        return
    try:
        task.close()
        client = Client.from_configuration(settings.timeout_s)
        client.call("tasks.delete", {"task": str(task.id), "force": True})
    except Exception as error:  # noqa: BLE001  # the refusal matters more than the tidying
        log.warning("task %s is left over, it could not be deleted: %s", task.id, error)


def _is_decorated(task_id: str) -> bool:
    """Whether *task_id* is the task of this process's decorated pipeline."""
    task = sdk.task_of(sdk.current_pipeline())
    return task is not None and str(task.id) == task_id


def check_launch(
    pipeline: Any, queue: str, settings: ClearmlSettings, *, instances: int = 1
) -> str | None:
    """Check *pipeline* where its script was started, and reroute it if need be.

    On an agent nothing is done: the pipeline is checked there before its first step.

    Returns:
        The queue to put its controller in, or None if the controller has to run here.

    Raises:
        UnsafePipelineError: it must not be launched. Its task is deleted.
    """
    if own_task_id() is not None:
        return queue
    result = check_live(plan_of_controller(pipeline), queue, settings, instances=instances)
    fix = judge(result, settings, AT_LAUNCH, sdk.task_of(pipeline))
    if fix is None:
        return queue
    sdk.reroute(pipeline, dict(fix.queues))
    return None if fix.kind is FixKind.LOCAL_CONTROLLER else fix.controller_queue or queue


def before_enqueue(
    task_id: str, queue: str | None, settings: ClearmlSettings, *, task: Any = None
) -> str | None:
    """Check a task that is about to be enqueued; returns the queue to use instead, or None.

    A controller is checked whole. A step of a controller was checked with it. What a step
    enqueues itself is checked as if the step were its controller: it holds a worker meanwhile.

    Raises:
        UnsafePipelineError: it could wait forever, or that cannot be told.
    """
    if is_already_checked() or not queue:
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
            here = sdk.current_pipeline() if _is_decorated(task_id) else None
            plan = plan_of_controller(here) if here is not None else plan_of_task(document)
            result = check_plan(plan, queue, snapshot, settings, client=client)
            fix = judge(result, settings, AT_ENQUEUE, task)
            return fix.controller_queue if fix is not None else None
        if own is not None and own not in _checked:
            _check_what_a_step_enqueues(own, task_id, queue, client, snapshot, settings)
    except UnsafePipelineError:
        raise
    except MlopsExtError as caught:
        if own is None:
            unknown = Result(target=task_id, answer=Answer.UNKNOWN, reasons=(str(caught),))
            judge(unknown, settings, (), task)
        log.warning("task %s is enqueued unchecked: %s", task_id, caught)
    return None


def _check_what_a_step_enqueues(  # what before_enqueue knows by then
    own: str,
    task_id: str,
    queue: str,
    client: Client,
    snapshot: Snapshot,
    settings: ClearmlSettings,
) -> None:
    """Refuse the task *task_id* if it would wait for the agent of this step, *own*.

    Raises:
        UnsafePipelineError: it would; the task is failed.
    """
    node = Node(
        name=task_id[:8], queue=queue, base_task=task_id if task_id in snapshot.tasks else None
    )
    plan = Plan(name=f"task {own[:8]}", nodes=(node,), task=own)
    result = check_plan(plan, None, snapshot, settings, client=client, own_task=own)
    if result.answer is not Answer.UNSAFE:
        return
    error = UnsafePipelineError(result)
    fail_task(client, task_id, str(error))
    if sdk.current_pipeline() is not None:
        # A component: the SDK only warns of what its thread raises, and waits for it forever.
        sys.stderr.write(f"mlops-ext: {error}\n")
        exit_now(1)
    raise error


def before_first_step(pipeline: Any, settings: ClearmlSettings) -> None:
    """Check a controller that is about to launch its first step, in the process that runs it.

    Raises:
        UnsafePipelineError: it could hang forever; its task is marked as failed.
    """
    task, on_agent = sdk.task_of(pipeline), own_task_id() is not None
    if task is None or sdk.runs_steps_here(pipeline) or (is_already_checked() and not on_agent):
        return
    sdk.reroute(pipeline, sdk.remembered_queues(pipeline))
    result = check_live(plan_of_controller(pipeline), None, settings, own_task=str(task.id))
    _checked.add(str(task.id))
    if on_agent and result.answer is Answer.UNKNOWN:
        log.warning("the pipeline goes on unchecked: %s", "; ".join(result.reasons))
        return
    try:
        fix = judge(result, settings, AT_FIRST_STEP, None if on_agent else task)
    except UnsafePipelineError as error:
        if on_agent:
            reason = "mlops-ext: it could wait forever"
            task.mark_failed(status_reason=reason, status_message=str(error)[:500], force=True)
        raise
    if fix is not None:
        sdk.reroute(pipeline, dict(fix.queues))
