"""The launcher: a pipeline is checked first, and only then enqueued."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar

from clearml_ext.check.fixes import FixKind
from clearml_ext.check.plans import plan_of_components, plan_of_controller
from clearml_ext.check.preflight import preflight
from clearml_ext.check.results import Answer, Result
from clearml_ext.guard import (
    IN_FORCE,
    before_first_step,
    choose_fix,
    passing,
    refuse,
    report_check_only,
    reroute,
)
from clearml_ext.server.process import own_task_id
from clearml_ext.settings import ClearmlSettings, load_settings
from clearml_ext.watchdog.watchdog import start_watchdog

__all__ = ["PipelineLauncher", "guarded_pipeline"]

log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., Any])


class PipelineLauncher:
    """Launches a ``PipelineController`` that cannot deadlock on its own queues.

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
        """What a launch with the controller in *queue* would come to; changes nothing."""
        plan = plan_of_controller(self.pipeline)
        return preflight(
            plan, queue or self.settings.services_queue, self.settings, instances=self.instances
        )

    def launch(self, queue: str | None = None, **start: Any) -> bool:
        """Check the pipeline, then start it as ``PipelineController.start`` does.

        Args:
            queue: the controller's queue, by default ``services_queue``.
            start: the other arguments of ``PipelineController.start``.

        Raises:
            UnsafePipelineError: it could hang for ever, or that cannot be told. Nothing
                was enqueued, and the controller's task is deleted.
        """
        queue = queue or self.settings.services_queue
        if own_task_id() is not None:
            _guard(self.pipeline, self.settings)
            with passing():
                return bool(self.pipeline.start(queue=queue, **start))
        result = self.preflight(queue)
        report_check_only(result, self.settings, self.pipeline._task)  # noqa: SLF001  # it has no public name
        local = False
        if result.answer is not Answer.SAFE:
            fix = choose_fix(result, self.settings) if result.answer is Answer.UNSAFE else None
            if fix is None:
                raise refuse(result, self.settings, self.pipeline._task)  # noqa: SLF001  # likewise
            log.warning("%s", fix.text)
            reroute(self.pipeline, fix.queues)
            queue = fix.controller_queue or queue
            local = fix.kind is FixKind.LOCAL_CONTROLLER
        _guard(self.pipeline, self.settings)
        with passing():
            if local:
                self.pipeline.start_locally()
                return True
            return bool(self.pipeline.start(queue=queue, **start))


def _guard(pipeline: Any, settings: ClearmlSettings) -> None:
    """Have *pipeline* checked and watched in this process, once its steps are known."""
    original = pipeline._prepare_pipeline  # noqa: SLF001  # the moment before the first step
    if getattr(original, IN_FORCE, False):
        return

    @functools.wraps(original)
    def prepare(*args: Any, **kwargs: Any) -> Any:
        answer = original(*args, **kwargs)
        if own_task_id() is not None:
            before_first_step(pipeline, settings)
        start_watchdog(pipeline, settings)
        return answer

    setattr(prepare, IN_FORCE, True)
    pipeline._prepare_pipeline = prepare  # noqa: SLF001  # likewise


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
        UnsafePipelineError: (by the decorated function) it could hang for ever, or that
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
            if own_task_id() is None and not _is_debugged(PipelineDecorator):
                chosen = _checked(function, chosen, loaded, instances)
            with _guarded_controllers(PipelineDecorator, loaded), passing():
                return PipelineDecorator.pipeline(**chosen)(function)(*args, **kwargs)

        return run  # type: ignore[return-value]  # wraps keeps the signature

    return decorate


def _is_debugged(decorator: Any) -> bool:
    """Whether steps run here, as sub-processes or as plain functions."""
    return bool(decorator._debug_execute_step_process)  # noqa: SLF001  # it has no public name


def _checked(
    function: Callable[..., Any],
    pipeline: dict[str, Any],
    settings: ClearmlSettings,
    instances: int,
) -> dict[str, Any]:
    """The arguments *pipeline*, rerouted where the settings ask for it and it helps."""
    from clearml import PipelineDecorator

    components = list(PipelineDecorator._added_decorator)  # noqa: SLF001  # it has no public name
    default = pipeline.get("default_queue") or PipelineDecorator._default_execution_queue  # noqa: SLF001  # likewise
    name = str(pipeline.get("name") or function.__name__)
    plan = plan_of_components(name, components, default)
    queue = pipeline["pipeline_execution_queue"]
    if pipeline.get("start_controller_locally"):
        queue = None
    result = preflight(plan, queue, settings, instances=instances)
    report_check_only(result, settings, None)
    if result.answer is Answer.SAFE:
        return pipeline
    fix = choose_fix(result, settings) if result.answer is Answer.UNSAFE else None
    if fix is None:
        raise refuse(result, settings)
    log.warning("%s", fix.text)
    moved = dict(fix.queues)
    for component in components:
        given = str(component.get("execution_queue") or default)
        component["execution_queue"] = moved.get(given, component.get("execution_queue"))
    if fix.kind is FixKind.LOCAL_CONTROLLER:
        return {**pipeline, "start_controller_locally": True}
    return {**pipeline, "pipeline_execution_queue": fix.controller_queue or queue}


class _guarded_controllers:  # noqa: N801  # a context manager, used like a function
    """Within it, controllers that are made by the decorator are checked and watched."""

    def __init__(self, decorator: Any, settings: ClearmlSettings) -> None:
        self.decorator, self.settings = decorator, settings
        self.own: Any = None

    def __enter__(self) -> None:
        from clearml_ext.patches import guard_controller

        self.own = vars(self.decorator).get("_prepare_pipeline")
        current = self.decorator._prepare_pipeline  # noqa: SLF001  # the moment before the first step
        if not getattr(current, IN_FORCE, False):
            self.decorator._prepare_pipeline = guard_controller(current, self.settings)  # noqa: SLF001  # likewise

    def __exit__(self, *error: object) -> None:
        if self.own is not None:
            self.decorator._prepare_pipeline = self.own  # noqa: SLF001  # likewise
        elif "_prepare_pipeline" in vars(self.decorator):
            del self.decorator._prepare_pipeline  # noqa: SLF001  # likewise
