"""What to do about a checked pipeline: launch it, reroute it, or refuse it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from clearml_ext.check.fixes import Fix, FixKind
from clearml_ext.check.results import Answer, Result
from clearml_ext.settings import ClearmlSettings

# Fixes that can be applied before anything is enqueued, the gentlest first.
AT_LAUNCH = (FixKind.CONTROLLER_QUEUE, FixKind.STEP_QUEUE, FixKind.LOCAL_CONTROLLER)
# Fixes for a controller's task that is made already, and with it its steps.
AT_ENQUEUE = (FixKind.CONTROLLER_QUEUE,)
# Fixes for a controller that runs.
AT_FIRST_STEP = (FixKind.STEP_QUEUE,)


@dataclass(frozen=True, slots=True)
class Proceed:
    """The pipeline is safe as it is."""


@dataclass(frozen=True, slots=True)
class Reroute:
    """The pipeline is safe once *fix* is applied."""

    fix: Fix


@dataclass(frozen=True, slots=True)
class Refuse:
    """The pipeline could wait forever, or whether it could is not known."""

    result: Result


def decide(
    result: Result, settings: ClearmlSettings, applicable: tuple[FixKind, ...]
) -> Proceed | Reroute | Refuse:
    """What to do about the pipeline that *result* is about.

    Args:
        result: what the check found out.
        settings: whether pipelines may be rerouted.
        applicable: the kinds of fixes that can still be applied, the one to prefer first.
    """
    if result.answer is Answer.SAFE:
        return Proceed()
    if result.answer is Answer.UNSAFE and settings.fix:
        for kind in applicable:
            for fix in result.fixes:
                if fix.kind is kind:
                    return Reroute(fix)
    return Refuse(result)
