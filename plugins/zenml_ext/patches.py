"""What takes the place of ZenML's own handling of materializers' temporary directories.

Upstream makes them where `tempfile` falls, and removes them with a bare ``shutil.rmtree``: on
Windows a file that anybody still holds open then fails a step whose work is done (WinError 32,
https://github.com/zenml-io/zenml/issues/2990).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlops_ext import tempdirs

__all__ = ["make_get_temporary_directory", "make_register_directory"]

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
        """As upstream's, below the configured root; its removal never raises."""
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
        """As upstream's; the removal at the end of the step never raises."""
        context = _step_context()
        if context is None:
            log.debug("outside of a step: %s is left to the caller", directory)
            return
        context._cleanup_registry.register_callback(  # noqa: SLF001  # as upstream does
            lambda: tempdirs.remove(Path(directory))
        )

    return register


def _step_context() -> Any:
    """The context of the step that runs in this process, or None."""
    from zenml import get_step_context

    try:
        return get_step_context()
    except RuntimeError:
        return None


def _directory(context: Any) -> tempdirs.RunDirectory:
    return tempdirs.for_process(context.pipeline_run.name if context else "")
