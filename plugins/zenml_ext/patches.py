"""The functions that take the place of ZenML's own.

Temporary directories: upstream makes those of materializers where `tempfile` falls, and removes
them with a bare ``shutil.rmtree``: on Windows a file that anybody still holds open then fails a
step whose work is done (WinError 32, https://github.com/zenml-io/zenml/issues/2990).

Memory: upstream takes a killed step for a failed one. In the processes of our own orchestrators,
and in no other, the functions that would declare it so are replaced (`zenml_ext.processes`).
"""

from __future__ import annotations

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


def make_create_job(_: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement of ``kube_utils.create_job`` in an orchestrator's pod."""
    from zenml_ext.kubernetes.supervisor.entrypoint import active_run

    def create_job(*args: Any, **kwargs: Any) -> Any:
        """Upstream's; a step's Job gets a plan for its memory, and errors are waited out."""
        return active_run().create_job(*args, **kwargs)

    return create_job


def make_list_jobs(upstream: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement of ``kube_utils.list_jobs`` in an orchestrator's pod."""
    from zenml_ext.kubernetes.supervisor.entrypoint import active_run

    def list_jobs(*args: Any, **kwargs: Any) -> Any:
        """Upstream's; superseded Jobs are left out, and failed ones are still to be decided."""
        return active_run().list_jobs(upstream, *args, **kwargs)

    return list_jobs


def make_check_job_status(_: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement of ``kube_utils.check_job_status`` in an orchestrator's pod."""
    from zenml_ext.kubernetes.supervisor.entrypoint import active_run

    def check_job_status(*args: Any, **kwargs: Any) -> Any:
        """Upstream's, of a step's Job and of those that superseded it."""
        return active_run().supervisor.check(*args, **kwargs)

    return check_job_status


def make_publish_failed_step_run(upstream: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement of ``step_runner.publish_failed_step_run`` in a step's pod."""
    from zenml_ext.kubernetes.step.entrypoint import leave_if_memory_is_the_cause

    def publish_failed_step_run(*args: Any, **kwargs: Any) -> Any:
        """Upstream's, unless memory is the cause: then the process ends unpublished."""
        leave_if_memory_is_the_cause(sys.exc_info()[1])
        return upstream(*args, **kwargs)

    return publish_failed_step_run


def make_rest_request(upstream: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement of ``RestZenStore._request`` in pods."""
    from zenml_ext.server import when_there

    def _request(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        """Upstream's, tried again while ZenML's server is away."""
        return when_there(lambda: upstream(self, method, *args, **kwargs), method)

    return _request


def make_call_entrypoint(upstream: Callable[..., Any]) -> Callable[..., Any]:
    """The replacement of ``BaseStep.call_entrypoint`` in a step's process under local_oom."""
    from zenml_ext.local.entrypoint import leave_if_memory_is_the_cause

    def call_entrypoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Upstream's; an error that memory caused ends the process unpublished."""
        try:
            return upstream(self, *args, **kwargs)
        except Exception as error:
            leave_if_memory_is_the_cause(error)
            raise

    return call_entrypoint


def _step_context() -> Any:
    """The context of the step that runs in this process, or None."""
    from zenml import get_step_context

    try:
        return get_step_context()
    except RuntimeError:
        return None


def _directory(context: Any) -> tempdirs.RunDirectory:
    return tempdirs.for_process(context.pipeline_run.name if context else "")
