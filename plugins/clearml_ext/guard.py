"""The guard inside a process that runs or launches pipelines.

It stands at the two places every run passes: ``Task.enqueue``, and the moment a controller has
read its steps and has not launched the first. Clones from the web interface and reruns pass the
second one on the agent.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn

from clearml_ext import sdk
from clearml_ext.admission import Admission
from clearml_ext.check.fixes import Fix, FixKind
from clearml_ext.check.plans import Node, Plan, plan_of_controller
from clearml_ext.check.preflight import check_enqueue, check_enqueued, check_live, check_plan
from clearml_ext.check.results import Answer, Result, UnsafePipelineError, dump_result
from clearml_ext.decision import AT_ENQUEUE, AT_FIRST_STEP, AT_LAUNCH, Refuse, Reroute, decide
from clearml_ext.errors import UndeclaredError
from clearml_ext.sdk import own_task_id
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import Snapshot, take_snapshot
from clearml_ext.server.tasks import (
    WAITING_TYPES,
    fail_task,
    may_wait,
    reason_to_keep,
)
from clearml_ext.settings import ClearmlSettings
from mlops_ext.errors import MlopsExtError
from mlops_ext.processes.exits import exit_now

log = logging.getLogger(__name__)

# In a check the script ends where a pipeline would run in its own process.
_REST = "what the script does after a pipeline that runs here was not looked at"
_launch: ContextVar[ClearmlSettings | None] = ContextVar("launch", default=None)
_checked: set[str] = set()


@contextmanager
def already_checked(settings: ClearmlSettings) -> Iterator[None]:
    """Let this thread enqueue what was checked already with *settings*, within the block."""
    token = _launch.set(settings)
    try:
        yield
    finally:
        _launch.reset(token)


def current_settings() -> ClearmlSettings | None:
    """The settings with which this thread enqueues what was checked already, or None."""
    return _launch.get()


def judge(
    result: Result, settings: ClearmlSettings, applicable: tuple[FixKind, ...], pipeline: Any = None
) -> Fix | None:
    """Decide about a checked pipeline: return the fix to apply, or None if it is safe as it is.

    Args:
        result: what the check found out.
        settings: whether to reroute.
        applicable: the kinds of fixes that the caller can apply.
        pipeline: if its task was created for this launch, a refusal deletes the task.

    Raises:
        UnsafePipelineError: the pipeline must not be launched.
    """
    if settings.check_server:
        exit_after_check(result, settings)
    decision = decide(result, settings, applicable)
    if isinstance(decision, Refuse):
        discard_task(pipeline, settings)
        _show_refusals_without_traceback()
        _report(result, settings)
        raise UnsafePipelineError(result)
    if not isinstance(decision, Reroute):
        return None
    log.warning("%s; so: %s, as %s", result.reasons[0], decision.fix.text, decision.fix.why)
    return decision.fix


def exit_after_check(result: Result, settings: ClearmlSettings) -> NoReturn:
    """Report *result* of a check, and end the process where a launch would begin."""
    _report(result, settings)
    exit_now(0)


def _report(result: Result, settings: ClearmlSettings) -> None:
    """Write *result* for the command line, if it started this process."""
    if settings.report is not None:
        with settings.report.open("a", encoding="utf-8") as file:
            file.write(f"{dump_result(result)}\n")


def _show_refusals_without_traceback() -> None:
    """Show a refusal that ends the script without a traceback: its message says what to do."""
    before = sys.excepthook

    def show(kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, UnsafePipelineError):
            error.__cause__, error.__suppress_context__ = None, True
            error.__traceback__ = traceback = None
        before(kind, error, traceback)

    sys.excepthook = show


def discard_task(pipeline: Any, settings: ClearmlSettings) -> None:
    """Delete the task of *pipeline* if it was created for the launch that does not take place.

    Any other task is left as it is, and named: a pipeline may have been built in the task of an
    experiment, which must not be lost with it.
    """
    task = sdk.task_of(pipeline)
    if task is None:
        return
    number = str(task.id)
    try:
        if not sdk.is_own_task(pipeline):
            log.warning("task %s is left as it is: the pipeline was built in it", number)
            return
        client = Client.from_configuration(settings.timeout_s)
        if kept := reason_to_keep(client, number, sdk.process_age_s()):
            log.warning("task %s is left as it is: %s", number, kept)
            return
        task.close()
        client.call("tasks.delete", {"task": number, "force": True})
    except Exception as error:  # noqa: BLE001  # the refusal matters more than the tidying
        log.warning("task %s is left over, it could not be deleted: %s", number, error)


def _decorated(task_id: str) -> tuple[Any, Plan | None]:
    """This process's decorated pipeline and its plan, if *task_id* is its task."""
    pipeline = sdk.current_pipeline()
    task = sdk.task_of(pipeline)
    mine = task is not None and str(task.id) == task_id
    return (pipeline, plan_of_controller(pipeline)) if mine else (None, None)


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
    result = _check_in_turn(pipeline, queue, settings, instances)
    fix = judge(result, settings, AT_LAUNCH, pipeline)
    sdk.mark_accepted(sdk.task_of(pipeline))
    if fix is None:
        return queue
    sdk.reroute(pipeline, dict(fix.queues))
    return None if fix.kind is FixKind.LOCAL_CONTROLLER else fix.controller_queue or queue


def _check_in_turn(pipeline: Any, queue: str, settings: ClearmlSettings, instances: int) -> Result:
    """Check *pipeline*; if asked to, wait until it is safe; first come, first served."""
    plan, task = plan_of_controller(pipeline), sdk.task_of(pipeline)

    def check(*, alone: bool = False) -> Result:
        return check_live(plan, queue, settings, instances=instances, alone=alone)

    if not settings.wait_s or settings.check_server or task is None:
        return check()
    if (result := check(alone=True)).answer is not Answer.SAFE:
        return result  # waiting would not help
    end = time.monotonic() + settings.wait_s
    told = False
    try:
        client = Client.from_configuration(settings.timeout_s)
        queues = {queue, *(node.queue for node in plan.nodes)}
        admission = Admission(client, str(task.id), queues, settings.wait_s)
        admission.enter()
        while True:
            first = admission.is_my_turn()
            result = check()
            if (first and result.answer is not Answer.UNSAFE) or time.monotonic() > end:
                break
            if not told:
                why = "; ".join(result.reasons[:1]) or "an earlier launch is on its way"
                log.warning("%s waits for its turn: %s", plan.name, why)
                told = True
            time.sleep(settings.interval_s)
    except MlopsExtError as error:
        return Result(target=plan.name, answer=Answer.UNKNOWN, reasons=(str(error),))
    if first:
        return result
    reason = f"{plan.name}: earlier launches were still on their way after {settings.wait_s:g} s"
    return Result(target=plan.name, answer=Answer.UNKNOWN, reasons=(reason,))


def before_enqueue(
    task_id: str, queue: str | None, settings: ClearmlSettings, *, task: Any = None
) -> str | None:
    """Check a task that is about to be enqueued; returns the queue to use instead, or None.

    What waits for other tasks is checked whole. A step of a controller was checked with it. What
    a step that waits enqueues is checked as if the step were its controller. A task that waits
    for nobody is not checked.

    Raises:
        UnsafePipelineError: it could wait forever, or that cannot be told.
    """
    if current_settings() or not queue or not _concerns_us(task):
        return None
    own, here = own_task_id(), None
    try:
        here, plan = _decorated(task_id)
        client = Client.from_configuration(settings.timeout_s)
        snapshot = take_snapshot(client, settings, [task_id, *filter(None, [own])])
        document = snapshot.tasks.get(task_id)
        if own is None or document is None or document.get("parent") != own:
            result = check_enqueued(task_id, queue, snapshot, settings, client=client, plan=plan)
            if result is not None:
                fix = judge(result, settings, AT_ENQUEUE, here)
                return fix.controller_queue if fix is not None else None
        if own is not None and own not in _checked:
            _check_what_a_step_enqueues(own, task_id, queue, client, snapshot, settings)
    except UnsafePipelineError:
        raise
    except MlopsExtError as caught:
        if own is None and not isinstance(caught, UndeclaredError):
            unknown = Result(target=task_id, answer=Answer.UNKNOWN, reasons=(str(caught),))
            judge(unknown, settings, (), here)
        log.warning("task %s is enqueued unchecked: %s", task_id, caught)
    return None


def _concerns_us(task: Any) -> bool:
    """Whether *task* has to be looked up: it may wait for others, and was not checked already."""
    if task is None:
        return True
    if str(getattr(task, "parent", None)) in _checked:
        return False
    kind = str(getattr(task, "task_type", "controller"))
    return own_task_id() is not None or kind in WAITING_TYPES or sdk.is_built_in(task)


def report_enqueue(task_id: str, queue: str, settings: ClearmlSettings) -> None:
    """In a check, report what enqueueing a task would come to; it is not enqueued."""
    result = check_enqueue(task_id, queue, settings, plan=_decorated(task_id)[1])
    if threading.current_thread() is not threading.main_thread():
        exit_after_check(result, settings)  # a loop that would wait for the task
    _report(result, settings)


def _check_what_a_step_enqueues(  # what before_enqueue knows by then
    own: str,
    task_id: str,
    queue: str,
    client: Client,
    snapshot: Snapshot,
    settings: ClearmlSettings,
) -> None:
    """Refuse *task_id* if this step, *own*, waits for it on the only agent that could run it.

    A step that calls a component waits for it, and so does a task of a type that starts others.
    Any other task does not wait for what it enqueues, as far as is known.

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
    if sdk.current_pipeline() is None and not may_wait(snapshot.tasks.get(own)):
        log.warning("task %s waits until this task ends: %s", task_id, result.reasons[0])
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
    if task is None or (current_settings() and not on_agent):
        return
    if sdk.runs_steps_here(pipeline):
        if settings.check_server:  # it waits in no queue
            safe = Result(target=str(task.name), answer=Answer.SAFE, notes=(_REST,))
            exit_after_check(safe, settings)
        return
    sdk.reroute(pipeline, sdk.remembered_queues(pipeline))
    plan, accepted = plan_of_controller(pipeline), sdk.was_accepted(task)
    result = check_live(plan, None, settings, own_task=str(task.id), alone=accepted)
    if settings.check_server:
        result = dataclasses.replace(result, notes=(*result.notes, _REST))
    _checked.add(str(task.id))
    if on_agent and result.answer is Answer.UNKNOWN:
        log.warning("the pipeline goes on unchecked: %s", "; ".join(result.reasons))
        return
    try:
        fix = judge(result, settings, AT_FIRST_STEP, None if on_agent else pipeline)
    except UnsafePipelineError as error:
        if on_agent:
            reason = "mlops-ext: it could wait forever"
            task.mark_failed(status_reason=reason, status_message=str(error)[:500], force=True)
        raise
    if fix is not None:
        sdk.reroute(pipeline, dict(fix.queues))
