"""What ``mlops-ext doctor`` checks for KServe."""

from __future__ import annotations

from collections.abc import Iterable

from kserve_ext.settings import load
from mlops_ext.errors import MlopsExtError
from mlops_ext.hookspecs import Finding, Severity

TERMINATION_GRACE_S = 30.0
"""Kubernetes' default; what a pod gets that asks for nothing else."""


def check_settings() -> Iterable[Finding]:
    """Whether a whole shutdown fits into the time that Kubernetes gives a pod by default."""
    name = "kserve.settings"
    try:
        settings = load(argv=[]).value
    except MlopsExtError as error:
        return [Finding(check=name, severity=Severity.PROBLEM, message=str(error))]
    total = settings.limits.total_s
    message = f"a shutdown takes at most {total:.1f} s"
    if total < TERMINATION_GRACE_S:
        return [Finding(check=name, severity=Severity.OK, message=message)]
    return [
        Finding(
            check=name,
            severity=Severity.NOTE,
            message=f"{message}, more than Kubernetes' default of {TERMINATION_GRACE_S:.0f} s",
            advice="raise terminationGracePeriodSeconds: mlops-ext kserve manifest prints it",
        )
    ]
