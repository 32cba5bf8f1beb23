"""The clearml extension of mlops-ext: pipelines that cannot deadlock on their own queues.

Importing it does not import ClearML; using `PipelineLauncher` or `guarded_pipeline` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlops_ext.lazy import lazy_exports

if TYPE_CHECKING:
    from clearml_ext.check.results import UnsafePipelineError
    from clearml_ext.launcher import PipelineLauncher, guarded_pipeline, waits_for
    from mlops_ext.patching import PatchSet

__all__ = ["PipelineLauncher", "UnsafePipelineError", "guarded_pipeline", "install", "waits_for"]

__getattr__ = lazy_exports(
    __name__,
    {
        "PipelineLauncher": "clearml_ext.launcher",
        "guarded_pipeline": "clearml_ext.launcher",
        "waits_for": "clearml_ext.launcher",
        "UnsafePipelineError": "clearml_ext.check.results",
    },
)


def install() -> PatchSet:
    """Guard every pipeline of this process; the result reverts it.

    Raises:
        UnsupportedVersionError: the installed ClearML is not one this extension knows.
        PatchConflictError: another package changed the same place; nothing was changed.
    """
    from mlops_ext.extensions.activation import apply

    return apply("clearml")
