"""What takes the place of ClearML's own functions, for code that must not change."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlops_ext.patching import Patch

if TYPE_CHECKING:
    from clearml_ext.settings import ClearmlSettings

__all__ = ["PATCHES", "guard_controller", "guard_enqueue", "guard_start"]

VERSIONS = ">=1.14,<3"
_TESTS = "tests/plugins/clearml_ext/test_agents.py"

PATCHES = (
    Patch(
        id="clearml.enqueue-guard",
        framework="clearml",
        distribution="clearml",
        versions=VERSIONS,
        target="clearml.task:Task.enqueue",
        replacement="clearml_ext.patches:guard_enqueue",
        reason="a controller that is enqueued where its steps wait for its own agent never ends",
        upstream="https://github.com/clearml/clearml/issues/1640",
        verified_by=f"{_TESTS}::test_one_agent_hangs_bare_and_is_refused_with_the_patch",
    ),
    Patch(
        id="clearml.start-guard",
        framework="clearml",
        distribution="clearml",
        versions=VERSIONS,
        target="clearml.automation.controller:PipelineController.start",
        replacement="clearml_ext.patches:guard_start",
        reason="a pipeline is enqueued where its steps wait for its own agent, and never ends",
        upstream="https://github.com/clearml/clearml/issues/1640",
        verified_by=f"{_TESTS}::test_one_agent_hangs_bare_and_is_refused_with_the_patch",
    ),
    Patch(
        id="clearml.controller-guard",
        framework="clearml",
        distribution="clearml",
        versions=VERSIONS,
        target="clearml.automation.controller:PipelineController._prepare_pipeline",
        replacement="clearml_ext.patches:guard_controller",
        reason="clones and reruns are not checked, time limits of queued steps crash the"
        " controller, and steps of an aborted controller still run",
        upstream="https://github.com/clearml/clearml/issues/1640",
        verified_by=f"{_TESTS}::test_a_clone_from_the_web_interface_is_checked_on_the_agent",
    ),
)


def guard_enqueue(original: Any) -> Any:
    """``Task.enqueue`` that checks controllers before they are enqueued."""
    plain: Callable[..., Any] = getattr(original, "__func__", original)

    @functools.wraps(plain)
    def enqueue(
        cls: Any,
        task: Any,
        queue_name: str | None = None,
        queue_id: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        from clearml_ext.guard import before_enqueue
        from clearml_ext.settings import load_settings

        number = task if isinstance(task, str) else str(task.id)
        given = None if isinstance(task, str) else task
        other = before_enqueue(number, queue_name or queue_id, load_settings(), task=given)
        if other is not None:
            queue_name, queue_id = other, None
        return plain(cls, task, queue_name, queue_id, *args, **kwargs)

    return classmethod(enqueue)


def guard_start(original: Any) -> Any:
    """``PipelineController.start`` by way of the launcher; a draft (no queue) is left alone."""

    @functools.wraps(original)
    def start(self: Any, queue: str | None = "services", *args: Any, **kwargs: Any) -> Any:
        from clearml_ext.guard import is_passing
        from clearml_ext.launcher import PipelineLauncher

        if queue is None or is_passing():
            return original(self, queue, *args, **kwargs)
        names = ("step_task_created_callback", "step_task_completed_callback", "wait")
        return PipelineLauncher(self).launch(
            queue, **dict(zip(names, args, strict=False)), **kwargs
        )

    return start


def guard_controller(original: Any, given: ClearmlSettings | None = None) -> Any:
    """``_prepare_pipeline`` after which the pipeline is checked, and watched while it runs."""

    @functools.wraps(original)
    def prepare(self: Any, *args: Any, **kwargs: Any) -> Any:
        from clearml_ext.guard import before_first_step
        from clearml_ext.settings import load_settings
        from clearml_ext.watchdog.watchdog import start_watchdog

        answer = original(self, *args, **kwargs)
        settings = given or load_settings()
        before_first_step(self, settings)
        start_watchdog(self, settings)
        return answer

    prepare._mlops_ext_guarded = True  # type: ignore[attr-defined]  # noqa: SLF001  # guard.IN_FORCE
    return prepare
