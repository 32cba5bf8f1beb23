"""The functions that take the place of ZenML's own.

Temporary directories: upstream makes those of materializers where `tempfile` falls, and removes
them with a bare ``shutil.rmtree``: on Windows a file that anybody still holds open then fails a
step whose work is done (WinError 32, https://github.com/zenml-io/zenml/issues/2990).

Memory: upstream takes a killed step for a failed one. In the processes of our own orchestrators,
and in no other, the functions that would declare it so are replaced (`zenml_ext.processes`).
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlops_ext import tempdirs

log = logging.getLogger(__name__)

_PREFIX = "zenml-"


def make_get_temporary_directory(_: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement of ``BaseMaterializer.get_temporary_directory``."""

    @contextmanager
    def get_temporary_directory(
        self: Any,
        delete_at_exit: bool,  # noqa: FBT001  # upstream's signature
        delete_after_step_execution: bool = True,  # noqa: FBT001, FBT002  # upstream's signature
    ) -> Iterator[str]:
        """Upstream's, below the configured root; its removal never raises."""
        context = _step_context()
        if not delete_at_exit and not (delete_after_step_execution and context):
            # Upstream leaves this one to the caller, so it may not go at the process's end.
            path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=tempdirs.root()))
        else:
            path = _directory(context).make(_PREFIX)
        if delete_after_step_execution and not delete_at_exit:
            self._register_directory_for_deletion_after_step_execution(str(path))
        try:
            with tempdirs.full_disk(path):
                yield str(path)
        finally:
            if delete_at_exit:
                tempdirs.remove(path)

    return get_temporary_directory


def make_register_directory(_: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement of ``_register_directory_for_deletion_after_step_execution``."""

    def register(self: Any, directory: str) -> None:  # noqa: ARG001  # upstream's signature
        """Upstream's; the removal at the end of the step never raises."""
        context = _step_context()
        if context is None:
            log.debug("outside of a step: %s is left to the caller", directory)
            return
        context._cleanup_registry.register_callback(  # noqa: SLF001  # as upstream does
            lambda: tempdirs.remove(Path(directory))
        )

    return register


def _of_the_run(name: str) -> Callable[..., Any]:
    """What replaces a function of ``kube_utils`` in an orchestrator's pod: the run's *name*."""

    def make(upstream: Callable[..., Any]) -> Callable[..., Any]:
        from zenml_ext.kubernetes.supervisor.entrypoint import active_run

        @functools.wraps(upstream)
        def replacement(*args: Any, **kwargs: Any) -> Any:
            return getattr(active_run(), name)(upstream, *args, **kwargs)

        return replacement

    return make


make_create_job = _of_the_run("create_job")
make_list_jobs = _of_the_run("list_jobs")
make_check_job_status = _of_the_run("check_job_status")


def _unless_memory(module: str) -> Callable[..., Any]:
    """What replaces ``publish_failed_step_run``: it ends a process that memory brought down."""

    def make(upstream: Callable[..., Any]) -> Callable[..., Any]:
        leave_if_memory_is_the_cause = importlib.import_module(module).leave_if_memory_is_the_cause

        def publish_failed_step_run(*args: Any, **kwargs: Any) -> Any:
            leave_if_memory_is_the_cause(sys.exc_info()[1])
            return upstream(*args, **kwargs)

        return publish_failed_step_run

    return make


make_publish_failed_step_run = _unless_memory("zenml_ext.kubernetes.step.entrypoint")
make_publish_failed_step_run_of_a_local_step = _unless_memory("zenml_ext.local.entrypoint")


def make_rest_request(upstream: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement of ``RestZenStore._request`` in pods."""
    from zenml_ext.server import when_there

    def _request(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, tried again while ZenML's server is away."""
        return when_there(lambda: upstream(self, method, *args, **kwargs), method)

    return _request


def _step_context() -> Any:
    """The context of the step that runs in this process, or None."""
    from zenml import get_step_context

    try:
        return get_step_context()
    except RuntimeError:
        return None


def _directory(context: Any) -> tempdirs.RunDirectory:
    return tempdirs.for_process(context.pipeline_run.name if context else "")
