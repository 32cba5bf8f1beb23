"""What zenml_ext tells mlops-ext: its framework, its patches, its checks. Imports no ZenML."""

from __future__ import annotations

from collections.abc import Iterable

from mlops_ext.hookspecs import DoctorCheck, Framework, hookimpl
from mlops_ext.patching import Patch
from zenml_ext.processes import DYNAMIC_POD, LOCAL_STEP, ORCHESTRATOR_POD, STEP_POD

_SUPPORTED = ">=0.94.5,<0.99"
_MATERIALIZER = "zenml.materializers.base_materializer:BaseMaterializer"
_KUBE_UTILS = "zenml.integrations.kubernetes.kube_utils"
_PIPELINE_TEST = (
    "kubernetes/test_pipelines.py::test_a_step_killed_for_memory_fails_on_zenml_and_completes_here"
)
_LIST_TEST = (
    "kubernetes/supervisor/test_supervisor.py"
    "::test_zenml_takes_a_kill_between_two_orchestrators_for_a_failure_and_we_do_not"
)
_POD_TEST = "kubernetes/step/test_entrypoint.py::test_a_failure_that_a_kill_caused_is_not_published"
_LOCAL_TEST = (
    "local/test_orchestrator.py"
    "::test_a_step_that_fails_because_its_child_was_killed_runs_again_with_more"
)
_KILLED_STEP = "a step killed for memory counts as failed for good"
_ISSUES = "https://github.com/zenml-io/zenml/issues"


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


def _patch(name: str, target: str, reason: str, verified_by: str, **more: str) -> Patch:
    fields = {"replacement": f"zenml_ext.patches:make_{name.replace('-', '_')}", **more}
    return Patch(
        id=f"zenml.{name}",
        framework="zenml",
        distribution="zenml",
        versions=_SUPPORTED,
        target=target,
        reason=reason,
        verified_by=f"tests/plugins/zenml_ext/{verified_by}",
        **fields,
    )


@hookimpl
def mlops_ext_patches() -> Iterable[Patch]:
    """Materializers' temporary directories; and what processes of our orchestrators patch."""
    yield _patch(
        "temp-dir",
        f"{_MATERIALIZER}.get_temporary_directory",
        "a finished step fails when a file in its temporary directory is still open, and the"
        " directory's place cannot be chosen",
        "test_temp_dir.py::test_a_busy_file_fails_no_finished_step",
        replacement="zenml_ext.patches:make_get_temporary_directory",
        expects="contextlib",  # it is made by contextlib.contextmanager
        upstream=f"{_ISSUES}/2990",
    )
    yield _patch(
        "temp-dir-after-step",
        f"{_MATERIALIZER}._register_directory_for_deletion_after_step_execution",
        "a directory that is still in use when its step ends is left behind for good",
        "test_temp_dir.py::test_what_is_busy_when_the_step_ends_is_removed_later",
        replacement="zenml_ext.patches:make_register_directory",
        upstream=f"{_ISSUES}/2990",
    )
    for process, suffix in (
        (ORCHESTRATOR_POD, ""),
        (DYNAMIC_POD, "-of-a-dynamic-pipeline"),
        (STEP_POD, "-of-a-step"),
        (LOCAL_STEP, "-of-a-local-step"),
    ):
        yield _patch(
            f"server-away{suffix}",
            "zenml.zen_stores.rest_zen_store:RestZenStore._request",
            "a step that runs fails when ZenML's server is away for 45 s",
            "test_server.py::test_a_server_that_comes_back_is_waited_for",
            replacement="zenml_ext.patches:make_rest_request",
            process=process,
            upstream=f"{_ISSUES}/3946",
        )
    for name in ("create_job", "list_jobs", "check_job_status"):
        yield _patch(
            name.replace("_", "-"),
            f"{_KUBE_UTILS}:{name}",
            _KILLED_STEP,
            _LIST_TEST if name == "list_jobs" else _PIPELINE_TEST,
            process=ORCHESTRATOR_POD,
        )
    for suffix, process, verified_by in (
        ("", STEP_POD, _POD_TEST),
        ("-of-a-local-step", LOCAL_STEP, _LOCAL_TEST),
    ):
        yield _patch(
            f"publish-failed-step-run{suffix}",
            "zenml.orchestrators.step_runner:publish_failed_step_run",
            _KILLED_STEP,
            verified_by,
            process=process,
        )


@hookimpl
def mlops_ext_doctor_checks() -> Iterable[DoctorCheck]:
    """Where temporary files go, and how memory limits are enforced here."""
    from zenml_ext import doctor

    return [
        DoctorCheck(name="zenml.temp-dir", framework="zenml", run=doctor.temp_dir),
        DoctorCheck(name="zenml.memory-limits", framework="zenml", run=doctor.memory_limits),
        DoctorCheck(name="zenml.init-hook", framework="zenml", run=doctor.init_hook),
    ]
