"""The launcher: a pipeline is checked first, and only then enqueued."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from clearml_ext import sdk
from clearml_ext.check.fixes import FixKind
from clearml_ext.check.plans import plan_of_components, plan_of_controller
from clearml_ext.check.preflight import check_live
from clearml_ext.check.results import Result
from clearml_ext.decision import AT_LAUNCH
from clearml_ext.guard import already_checked, check_launch, judge
from clearml_ext.patches import guarded
from clearml_ext.server.tasks import WAITS_FOR
from clearml_ext.settings import ClearmlSettings, load_settings

__all__ = ["PipelineLauncher", "guarded_pipeline", "waits_for"]

F = TypeVar("F", bound=Callable[..., Any])


class PipelineLauncher:
    """Launch a ``PipelineController`` only if it cannot deadlock on its own queues.

    The same script runs twice: where it is started, and on the agent that takes the controller.
    Here it checks before anything is enqueued; there, before the first step, which covers clones
    and reruns from the web interface.

    Args:
        pipeline: the ``PipelineController``, with its steps added.
        instances: how many of it may run at the same time.
        settings: more settings, by the names of `ClearmlSettings`: ``fix``, ``services_queue``,
            ``pending_s``, ``move`` and the others.
    """

    def __init__(self, pipeline: Any, *, instances: int = 1, **settings: object) -> None:
        self.pipeline, self.instances = pipeline, instances
        self.settings: ClearmlSettings = load_settings(**settings)

    def preflight(self, queue: str | None = None) -> Result:
        """Check a launch with the controller in *queue*; changes nothing."""
        plan = plan_of_controller(self.pipeline)
        return check_live(
            plan, queue or self.settings.services_queue, self.settings, instances=self.instances
        )

    def launch(self, queue: str | None = None, **start: Any) -> bool:
        """Check the pipeline, then start it as ``PipelineController.start`` does.

        Args:
            queue: the controller's queue, by default ``services_queue``.
            start: the other arguments of ``PipelineController.start``.

        Raises:
            UnsafePipelineError: it could hang forever, or that cannot be told. Nothing
                was enqueued, and the controller's task is deleted.
        """
        queue = queue or self.settings.services_queue
        place = check_launch(self.pipeline, queue, self.settings, instances=self.instances)
        with guarded(self.pipeline), already_checked(self.settings):
            if place is None:
                self.pipeline.start_locally()
                return True
            return bool(self.pipeline.start(queue=place, **start))


def guarded_pipeline(
    *, instances: int = 1, settings: dict[str, object] | None = None, **pipeline: Any
) -> Callable[[F], F]:
    """``PipelineDecorator.pipeline`` that checks before the pipeline's task is created.

    The components that are decorated so far are its steps; which of them run, and in what order,
    is known only when it runs, so all are assumed to wait at the same time.

    Args:
        instances: how many of it may run at the same time.
        settings: more settings, by the names of `ClearmlSettings`.
        pipeline: the arguments of ``PipelineDecorator.pipeline``.

    Raises:
        UnsafePipelineError: (by the decorated function) it could hang forever, or that
            cannot be told. Nothing was created.
    """
    loaded = load_settings(**(settings or {}))
    if pipeline.get("pipeline_execution_queue", "") == "":
        pipeline["pipeline_execution_queue"] = loaded.services_queue

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            from clearml import PipelineDecorator

            chosen = dict(pipeline)
            if sdk.own_task_id() is None and not sdk.components_run_here():
                chosen = _checked(function, chosen, loaded, instances)
            with guarded(PipelineDecorator), already_checked(loaded):
                return PipelineDecorator.pipeline(**chosen)(function)(*args, **kwargs)

        return run  # type: ignore[return-value]  # wraps keeps the signature

    return decorate


def _checked(
    function: Callable[..., Any],
    pipeline: dict[str, Any],
    settings: ClearmlSettings,
    instances: int,
) -> dict[str, Any]:
    """Return the arguments *pipeline*, rerouted if the settings ask for that and it helps."""
    components = sdk.components()
    default = pipeline.get("default_queue") or sdk.components_queue()
    name = str(pipeline.get("name") or function.__name__)
    locally = pipeline.get("start_controller_locally")
    queue = None if locally else pipeline["pipeline_execution_queue"]
    plan = plan_of_components(name, components, default)
    fix = judge(check_live(plan, queue, settings, instances=instances), settings, AT_LAUNCH)
    if fix is None:
        return pipeline
    moved = dict(fix.queues)
    for component in components:
        given = str(component.get("execution_queue") or default)
        component["execution_queue"] = moved.get(given, component.get("execution_queue"))
    if fix.kind is FixKind.LOCAL_CONTROLLER:
        return {**pipeline, "start_controller_locally": True}
    return {**pipeline, "pipeline_execution_queue": fix.controller_queue or queue}


def waits_for(*queues: str) -> None:
    """Declare that the current task starts tasks in *queues* and holds its agent meanwhile.

    For schedulers, optimizers and services of one's own, which cannot be recognised by what the
    SDK keeps on their task. Call it after ``Task.init``, before the task is enqueued.

    Raises:
        ValueError: there is no current task.
    """
    from clearml import Task

    task: Any = Task.current_task()
    if task is None:
        raise ValueError("waits_for: there is no current task; call Task.init first")
    task.add_tags([f"{WAITS_FOR}{queue}" for queue in queues])
