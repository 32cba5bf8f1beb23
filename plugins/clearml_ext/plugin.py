"""What mlops-ext may know of this extension without importing ClearML."""

from __future__ import annotations

from collections.abc import Iterable

from mlops_ext.hookspecs import Framework, hookimpl

__all__ = ["mlops_ext_frameworks"]


@hookimpl
def mlops_ext_frameworks() -> Iterable[Framework]:
    """ClearML, in the versions the tests run with."""
    return [
        Framework(
            name="clearml",
            distribution="clearml",
            supported=">=1.14,<3",
            extension="clearml_ext",
            summary="pipelines are checked for deadlock before they are enqueued",
        )
    ]
