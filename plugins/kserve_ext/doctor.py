"""What ``mlops-ext doctor`` checks for KServe."""

from __future__ import annotations

from collections.abc import Iterable

from kserve_ext.settings import KUBERNETES_GRACE_S, load
from mlops_ext.errors import MlopsExtError
from mlops_ext.hookspecs import Finding, Severity


def check_settings() -> Iterable[Finding]:
    """Whether a whole shutdown fits into the time that Kubernetes gives a pod by default."""
    name = "kserve.settings"
    try:
        total = load(argv=[]).value.limits.total_s
    except MlopsExtError as error:
        return [Finding(check=name, severity=Severity.PROBLEM, message=str(error))]
    message = f"a shutdown takes at most {total:.1f} s"
    if total < KUBERNETES_GRACE_S:
        return [Finding(check=name, severity=Severity.OK, message=message)]
    message += f", more than Kubernetes' default of {KUBERNETES_GRACE_S} s"
    advice = "raise terminationGracePeriodSeconds: mlops-ext kserve manifest prints it"
    return [Finding(check=name, severity=Severity.NOTE, message=message, advice=advice)]
