"""The functions that take the place of ClearML's own; nothing else of ClearML is changed.

`plugin.PATCHES` says where each stands. `guarded` puts one of them on a single pipeline, for code
that asks for the guard itself instead of having the SDK patched.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from clearml_ext.check.results import Answer, Result
from clearml_ext.guard import (
    already_checked,
    before_enqueue,
    before_first_step,
    check_launch,
    current_settings,
    exit_after_check,
    report_enqueue,
)
from clearml_ext.settings import load_settings
from clearml_ext.watchdog.reaper import Reaper
from clearml_ext.watchdog.watchdog import start_watchdog

# The SDK's method that runs between a controller's reading its steps and launching the first.
_HOOK = "_prepare_pipeline"
_IN_FORCE = "_mlops_ext_guarded"


def enqueue_guard(original: Any) -> Any:
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
        number = task if isinstance(task, str) else str(task.id)
        given = None if isinstance(task, str) else task
        settings = load_settings()
        if settings.check_server:
            return report_enqueue(number, str(queue_name or queue_id), settings)
        other = before_enqueue(number, queue_name or queue_id, settings, task=given)
        if other is not None:
            queue_name, queue_id = other, None
        return plain(cls, task, queue_name, queue_id, *args, **kwargs)

    return classmethod(enqueue)


def session_guard(original: Any) -> Any:
    """``Session.__init__`` that asks the check's server, whatever server a checked script names."""
    address = load_settings().check_server
    if not address:
        return original
    from clearml.backend_api.session.defs import ENV_HOST

    ENV_HOST.set(address)
    signature = inspect.signature(original)

    @functools.wraps(original)
    def connect(*args: Any, **kwargs: Any) -> None:
        given = signature.bind(*args, **kwargs)
        given.arguments["host"] = address
        original(*given.args, **given.kwargs)

    return connect


def local_job_guard(original: Any) -> Any:
    """``LocalClearmlJob.launch`` that runs no step of a script which is only checked."""
    if not load_settings().check_server:
        return original

    @functools.wraps(original)
    def launch(*_args: Any, **_kwargs: Any) -> Any:
        exit_after_check(Result(target="steps", answer=Answer.SAFE), load_settings())

    return launch


def debug_guard(original: Any) -> Any:
    """``PipelineDecorator.debug_pipeline`` that runs no step of a script which is only checked."""
    if not load_settings().check_server:
        return original

    def debug_pipeline(cls: Any) -> None:
        cls.run_locally()  # sub-processes: `controller_guard` stands before the first

    return classmethod(debug_pipeline)


def start_guard(original: Any) -> Any:
    """``PipelineController.start`` that checks first; a draft (no queue) is left alone."""

    @functools.wraps(original)
    def start(self: Any, queue: str | None = "services", *args: Any, **kwargs: Any) -> Any:
        if queue is None or current_settings():
            return original(self, queue, *args, **kwargs)
        settings = load_settings()
        place = check_launch(self, queue, settings)
        with already_checked(settings):
            if place is None:
                self.start_locally()
                return True
            return original(self, place, *args, **kwargs)

    return start


def controller_guard(original: Any) -> Any:
    """``_prepare_pipeline`` after which the pipeline is checked, and watched while it runs."""

    @functools.wraps(original)
    def prepare(self: Any, created: Any = None, completed: Any = None) -> Any:
        settings = current_settings() or load_settings()
        reaper = Reaper()
        answer = original(self, reaper.reporting(created), completed)
        before_first_step(self, settings)
        start_watchdog(self, settings, reaper)
        return answer

    setattr(prepare, _IN_FORCE, True)
    return prepare


@contextmanager
def guarded(owner: Any) -> Iterator[None]:
    """Guard *owner*, a pipeline or ``PipelineDecorator``, with `controller_guard` within the block.

    The guard stands on this one object, over its class's method, and is removed afterwards.
    """
    current = getattr(owner, _HOOK)
    if getattr(current, _IN_FORCE, False):
        yield
        return
    guard = controller_guard(getattr(current, "__func__", current))
    setattr(owner, _HOOK, guard if isinstance(owner, type) else types.MethodType(guard, owner))
    try:
        yield
    finally:
        delattr(owner, _HOOK)
