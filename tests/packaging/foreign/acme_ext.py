"""A third party's extension: a framework, a patch and a memory policy."""

from mlops_ext import Patch, hookimpl
from mlops_ext.hookspecs import DoctorCheck, Finding, Framework, Severity

REPORTS = []


@hookimpl
def mlops_ext_frameworks():
    """Name the framework."""
    return [
        Framework(
            name="acme",
            distribution="acme-ext",
            supported=">=1,<2",
            extension="acme_ext",
            summary="right answers",
            module="acme_fw",
        )
    ]


@hookimpl
def mlops_ext_patches():
    """Give the patch."""
    return [
        Patch(
            id="acme.answer",
            framework="acme",
            distribution="acme-ext",
            versions=">=1,<2",
            target="acme_fw:answer",
            replacement="acme_ext:replace_answer",
            reason="the answer is wrong",
            verified_by="tests/packaging",
        )
    ]


@hookimpl
def mlops_ext_memory_policies():
    """Give a memory policy."""
    from mlops_ext.extensions.builtin import mlops_ext_memory_policies as builtin

    return {"generous": builtin()["double"]}


@hookimpl
def mlops_ext_doctor_checks():
    """Give a check."""
    finding = Finding(check="acme.weather", severity=Severity.OK, message="fine")
    return [DoctorCheck(name="acme.weather", framework="acme", run=lambda: [finding])]


@hookimpl
def mlops_ext_patch_applied(report):
    """Remember what was applied."""
    REPORTS.append((report.patch.id, report.outcome.value))


def replace_answer(original):
    """Replace the answer."""
    return lambda: "right, not " + original()
