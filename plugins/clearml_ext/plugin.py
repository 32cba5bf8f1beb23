"""What mlops-ext may know of this extension without importing ClearML."""

from __future__ import annotations

from collections.abc import Iterable

from clearml_ext.patches import PATCHES
from mlops_ext.hookspecs import DoctorCheck, Finding, Framework, Severity, hookimpl
from mlops_ext.patching import Patch

__all__ = ["mlops_ext_doctor_checks", "mlops_ext_frameworks", "mlops_ext_patches"]


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


@hookimpl
def mlops_ext_patches() -> Iterable[Patch]:
    """The guards at ``Task.enqueue`` and before a controller's first step."""
    return PATCHES


@hookimpl
def mlops_ext_doctor_checks() -> Iterable[DoctorCheck]:
    """Whether the settings can be read; the server is not asked."""
    return [DoctorCheck(name="clearml.settings", framework="clearml", run=_check_settings)]


def _check_settings() -> Iterable[Finding]:
    from clearml_ext.settings import load_settings

    found = load_settings()
    yield Finding(
        check="clearml.settings",
        severity=Severity.OK,
        message=f"controllers go to {found.services_queue}; "
        f"refused pipelines are {'rerouted' if found.fix else 'not launched'}",
    )
