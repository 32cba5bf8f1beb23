"""What zenml_ext tells mlops-ext: its framework, its patches, its checks. Imports no ZenML."""

from __future__ import annotations

from collections.abc import Iterable

from mlops_ext.hookspecs import DoctorCheck, Framework, hookimpl
from mlops_ext.patching import Patch

__all__ = ["mlops_ext_doctor_checks", "mlops_ext_frameworks", "mlops_ext_patches"]

_SUPPORTED = ">=0.94.6,<0.99"
_MATERIALIZER = "zenml.materializers.base_materializer:BaseMaterializer"
_TESTS = "tests/plugins/zenml_ext/test_temp_dir.py"


@hookimpl
def mlops_ext_frameworks() -> Iterable[Framework]:
    """ZenML."""
    return [
        Framework(
            name="zenml",
            distribution="zenml",
            supported=_SUPPORTED,
            extension="zenml_ext",
            summary="steps that survive out-of-memory kills, temporary directories of your choice",
        )
    ]


@hookimpl
def mlops_ext_patches() -> Iterable[Patch]:
    """The two places where ZenML makes and removes materializers' temporary directories."""
    return [
        Patch(
            id="zenml.temp-dir",
            framework="zenml",
            distribution="zenml",
            versions=_SUPPORTED,
            target=f"{_MATERIALIZER}.get_temporary_directory",
            expects="contextlib",  # it is made by contextlib.contextmanager
            replacement="zenml_ext.patches:make_get_temporary_directory",
            reason="a finished step fails when a file in its temporary directory is still open,"
            " and the directory's place cannot be chosen",
            upstream="https://github.com/zenml-io/zenml/issues/2990",
            verified_by=f"{_TESTS}::test_a_busy_file_fails_no_finished_step",
        ),
        Patch(
            id="zenml.temp-dir-after-step",
            framework="zenml",
            distribution="zenml",
            versions=_SUPPORTED,
            target=f"{_MATERIALIZER}._register_directory_for_deletion_after_step_execution",
            replacement="zenml_ext.patches:make_register_directory",
            reason="a directory that is still in use when its step ends is left behind for good",
            upstream="https://github.com/zenml-io/zenml/issues/2990",
            verified_by=f"{_TESTS}::test_what_is_busy_when_the_step_ends_is_removed_later",
        ),
    ]


@hookimpl
def mlops_ext_doctor_checks() -> Iterable[DoctorCheck]:
    """Where temporary files go, and how memory limits are enforced here."""
    from zenml_ext import doctor as _doctor

    return [
        DoctorCheck(name="zenml.temp-dir", framework="zenml", run=_doctor.temp_dir),
        DoctorCheck(name="zenml.memory-limits", framework="zenml", run=_doctor.memory_limits),
        DoctorCheck(name="zenml.init-hook", framework="zenml", run=_doctor.init_hook),
    ]
