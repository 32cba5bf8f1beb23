"""What mlops-ext may know of this extension without importing ClearML."""

from __future__ import annotations

from collections.abc import Iterable

from clearml_ext.doctor import check_settings
from mlops_ext.hookspecs import DoctorCheck, Framework, hookimpl
from mlops_ext.patching import Patch

# The versions of ClearML that the tests run with, and those between them.
SUPPORTED = ">=1.14,<3"

_TESTS = "tests/plugins/clearml_ext"


_SCRIPTS = (
    "check/test_scripts.py::test_a_checked_script_creates_and_enqueues_nothing_whatever_it_does"
)
_AGENTS = "test_agents.py::test_one_agent_hangs_bare_and_is_refused_with_the_patch"
_CLONES = "test_agents.py::test_a_clone_from_the_web_interface_is_checked_on_the_agent"

_ROWS = (  # name, target, reason, test, upstream's report
    ("enqueue-guard", "clearml.task:Task.enqueue",
     "a controller that is enqueued where its steps wait for its own agent never ends",
     _AGENTS, 1244),
    ("start-guard", "clearml.automation.controller:PipelineController.start",
     "a pipeline is enqueued where its steps wait for its own agent, and never ends",
     _AGENTS, 1244),
    ("controller-guard", "clearml.automation.controller:PipelineController._prepare_pipeline",
     ("clones and reruns are not checked, time limits of queued steps crash the controller, and"
     " steps of an aborted controller still run"), _CLONES, 1640),
    ("local-job-guard", "clearml.automation.job:LocalClearmlJob.launch",
     "a script that is only checked runs its steps as sub-processes", _SCRIPTS, None),
    ("session-guard", "clearml.backend_api.session.session:Session.__init__",
     "a script that is only checked writes to the server that it names itself", _SCRIPTS, None),
    ("debug-guard", "clearml.automation.controller:PipelineDecorator.debug_pipeline",
     "a script that is only checked runs its steps as functions", _SCRIPTS, None),
)  # fmt: skip

PATCHES = tuple(
    Patch(
        id=f"clearml.{name}",
        framework="clearml",
        distribution="clearml",
        versions=SUPPORTED,
        target=target,
        replacement=f"clearml_ext.patches:{name.replace('-', '_')}",
        reason=reason,
        upstream=f"https://github.com/clearml/clearml/issues/{number}" if number else "",
        verified_by=f"{_TESTS}/{test}",
    )
    for name, target, reason, test, number in _ROWS
)


@hookimpl
def mlops_ext_frameworks() -> Iterable[Framework]:
    """ClearML, in the versions the tests run with."""
    return [
        Framework(
            name="clearml",
            distribution="clearml",
            supported=SUPPORTED,
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
    return [DoctorCheck(name="clearml.settings", framework="clearml", run=check_settings)]
