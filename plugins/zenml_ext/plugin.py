"""What zenml_ext tells mlops-ext: its framework, its patches, its checks. Imports no ZenML."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mlops_ext.hookspecs import DoctorCheck, Framework, hookimpl
from mlops_ext.patching import Patch
from zenml_ext.processes import DYNAMIC_POD, LOCAL_STEP, ORCHESTRATOR_POD, STEP_POD

_SUPPORTED = ">=0.94.6,<0.99"
_MATERIALIZER = "zenml.materializers.base_materializer:BaseMaterializer"
_KUBE_UTILS = "zenml.integrations.kubernetes.kube_utils"
_TESTS = "tests/plugins/zenml_ext"
_TEMP_DIR_TESTS = f"{_TESTS}/test_temp_dir.py"
_PIPELINE_TEST = (
    f"{_TESTS}/kubernetes/test_pipelines.py"
    "::test_a_step_killed_for_memory_fails_on_zenml_and_completes_here"
)
_LIST_TEST = (
    f"{_TESTS}/kubernetes/supervisor/test_supervisor.py"
    "::test_zenml_takes_a_kill_between_two_orchestrators_for_a_failure_and_we_do_not"
)
_PUBLISH_TEST = (
    f"{_TESTS}/kubernetes/step/test_entrypoint.py"
    "::test_a_failure_that_a_kill_caused_is_not_published"
)
_LOCAL_TEST = (
    f"{_TESTS}/local/test_orchestrator.py"
    "::test_a_step_that_fails_because_its_child_was_killed_runs_again_with_more"
)
_KILLED_STEP = "a step killed for memory counts as failed for good"


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
    """Materializers' temporary directories; and what would declare a killed step failed."""
    return [
        *_memory_patches(),
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
            verified_by=f"{_TEMP_DIR_TESTS}::test_a_busy_file_fails_no_finished_step",
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
            verified_by=f"{_TEMP_DIR_TESTS}::test_what_is_busy_when_the_step_ends_is_removed_later",
        ),
    ]


def _memory_patches() -> Iterator[Patch]:
    """Those that processes of our orchestrators apply to themselves."""
    seams = (
        ("create-job", f"{_KUBE_UTILS}:create_job", ORCHESTRATOR_POD, _PIPELINE_TEST),
        ("list-jobs", f"{_KUBE_UTILS}:list_jobs", ORCHESTRATOR_POD, _LIST_TEST),
        ("check-job-status", f"{_KUBE_UTILS}:check_job_status", ORCHESTRATOR_POD, _PIPELINE_TEST),
        (
            "publish-failed-step-run",
            "zenml.orchestrators.step_runner:publish_failed_step_run",
            STEP_POD,
            _PUBLISH_TEST,
        ),
        (
            "call-entrypoint",
            "zenml.steps.base_step:BaseStep.call_entrypoint",
            LOCAL_STEP,
            _LOCAL_TEST,
        ),
    )
    for process, suffix in (
        (ORCHESTRATOR_POD, ""),
        (DYNAMIC_POD, "-of-a-dynamic-pipeline"),
        (STEP_POD, "-of-a-step"),
    ):
        yield Patch(
            id=f"zenml.server-away{suffix}",
            framework="zenml",
            distribution="zenml",
            versions=_SUPPORTED,
            target="zenml.zen_stores.rest_zen_store:RestZenStore._request",
            replacement="zenml_ext.patches:make_rest_request",
            process=process,
            reason="a step that runs fails when ZenML's server is away for 45 s",
            upstream="https://github.com/zenml-io/zenml/issues/3946",
            verified_by=f"{_TESTS}/test_server.py::test_a_server_that_comes_back_is_waited_for",
        )
    for name, target, process, test in seams:
        yield Patch(
            id=f"zenml.{name}",
            framework="zenml",
            distribution="zenml",
            versions=_SUPPORTED,
            target=target,
            replacement=f"zenml_ext.patches:make_{name.replace('-', '_')}",
            process=process,
            reason=_KILLED_STEP,
            verified_by=test,
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
