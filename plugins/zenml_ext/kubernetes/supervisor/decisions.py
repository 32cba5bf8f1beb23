"""What follows a step's Job that has failed. Pure: facts in, the next Job's changes out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from mlops_ext.memory import (
    Attempt,
    Caps,
    Cause,
    Decision,
    Evidence,
    Fail,
    MemoryPlan,
    MemoryPolicy,
    Quantity,
    Retry,
    RetryElsewhere,
)
from zenml_ext.kubernetes.objects.diagnosis import Ending
from zenml_ext.kubernetes.objects.job import MAIN, Successor, main_container, memory_of
from zenml_ext.kubernetes.objects.state import Track
from zenml_ext.memory.records import KILLED, AttemptRecord

__all__ = ["Failed", "GiveUp", "Relaunch", "after_failure", "is_node_exhaustion"]

_HEADROOM = 1.2
"""A peak that a sibling reached, and this much more: two runs of the same code on other data
differ; a limit below the need costs a kill."""
_FAR_FROM_LIMIT = 0.6
"""Killed with no more than this of its own limit in use: it was the node that ran out."""
_MOST_DISRUPTIONS = 20
"""A step that is taken from its node this often will not finish without a look at the cluster."""
_DEFAULT_REQUEST = Quantity.parse("400Mi")
"""What ZenML requests for a step that nobody asked memory for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A failed Job of a step, and what is known around it.

    Attributes:
        job: the Job.
        track: its track.
        ending: what ended it.
        caps: what the cluster can give; read only where memory is the cause.
        family_peak: the largest use seen of a step of the same code; None where none is known.
        beside_unlimited: steps without a limit ran in the same run, so that a node may run out
            before this step reaches its own limit.
    """

    job: Mapping[str, Any]
    track: Track
    ending: Ending
    caps: Caps
    family_peak: Quantity | None = None
    beside_unlimited: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaunch:
    """Run the step again.

    Attributes:
        change: how the next Job differs.
        adopt: go on with the step run that is RUNNING; False: it is one of the user's own
            retries, which make a step run each.
        attempt: the attempt that ended, for the record.
        reason: why, in one sentence.
    """

    change: Successor
    adopt: bool
    attempt: AttemptRecord
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """Do not run the step again.

    Attributes:
        reason: why, in one sentence.
        attempt: the attempt that ended, for the record.
        cause: what ended it.
    """

    reason: str
    attempt: AttemptRecord
    cause: Cause


def is_node_exhaustion(failed: Failed) -> bool:
    """Whether the node ran out of memory, and not the step of its own limit."""
    evidence, limit = failed.ending.evidence, failed.ending.memory
    if not evidence.oom_killed:
        return False
    if limit is None:
        return True
    return (
        failed.beside_unlimited
        and evidence.peak is not None
        and evidence.peak < _FAR_FROM_LIMIT * limit
    )


def after_failure(failed: Failed, policy: MemoryPolicy, *, in_place: bool) -> Relaunch | GiveUp:
    """What to do about a failed Job.

    Node exhaustion is no matter of more memory but of a request: the scheduler must know what
    the step needs. Where a step of the same code has shown it, that; else the step runs on a
    node without other steps of its run, and shows it.
    """
    track, ending = failed.track, failed.ending
    empty = MemoryPlan(ladder=(), reason="Nobody asked for memory.")
    plan = (track.plan or empty).capped(failed.caps)
    attempt = Attempt(memory=ending.memory, oom_retries=track.oom_retries, container=MAIN)
    decision = policy.on_failure(plan, attempt, ending.evidence)
    change = _same_again(failed, plan, in_place=in_place)
    if isinstance(decision, Retry):
        return _more_memory(failed, plan, decision, change)
    if isinstance(decision, RetryElsewhere):
        if track.disruptions >= _MOST_DISRUPTIONS:
            reason = f"It was taken from its node {track.disruptions + 1} times."
            return _give_up(failed, decision, reason)
        moved = replace(change.track, disruptions=track.disruptions + 1)
        change = replace(change, track=moved, avoid_node=ending.evidence.node or "")
        reason = decision.reason
        if ending.memory is None and "memory" in ending.evidence.disruption:
            change, reason = _sized(failed, plan, change)
        return _relaunch(failed, change, reason)
    return _users_retry(failed, decision, change)


def _more_memory(failed: Failed, plan: MemoryPlan, decision: Retry, change: Successor) -> Relaunch:
    counted = replace(change.track, oom_retries=failed.track.oom_retries + 1)
    change = replace(change, track=counted)
    if is_node_exhaustion(failed):
        return _relaunch(failed, *_sized(failed, plan, change))
    return _relaunch(failed, replace(change, limit=decision.memory, request=None), decision.reason)


def _sized(failed: Failed, plan: MemoryPlan, change: Successor) -> tuple[Successor, str]:
    """What follows where the node ran out: the scheduler is told what is known of the need."""
    cap = plan.cap.memory if plan.cap else None
    limit, seen = failed.ending.memory, failed.ending.evidence.peak
    if limit is not None:
        return replace(change, limit=limit, request=None), (
            f"The node ran out of memory while it used {_human(seen)} of its {limit.human}: it"
            " runs again, apart from steps without a limit."
        )
    if failed.family_peak is not None:
        fits = Quantity(math.ceil(failed.family_peak * _HEADROOM))
        size = min(fits, cap) if cap else fits
        return replace(change, limit=size, request=None), (
            f"The node ran out of memory; a step of the same code used"
            f" {failed.family_peak.human}: it runs again with {size.human}."
        )
    request = Quantity(max(seen or 0, _request_of(failed), _DEFAULT_REQUEST))
    request = min(request, cap) if cap else request
    alone = replace(change.track, alone=True)
    within = f", with a limit of {cap.human}" if cap else ""
    most = max(cap, request) if cap else None
    return replace(change, limit=most, request=request, track=alone), (
        "The node ran out of memory, and nobody knows what this step needs: it runs again on a"
        f" node without other steps of the run{within}."
    )


def _users_retry(failed: Failed, decision: Fail, change: Successor) -> Relaunch | GiveUp:
    """A failure that is not ours: one of the user's own retries, where a kill cut them short.

    Kubernetes retries on its own what is counted; a signal 9 ends the Job by our rule.
    """
    left = int(failed.job["spec"].get("backoffLimit") or 0) - failed.ending.failed
    ended_by_rule = failed.ending.reason == "PodFailurePolicy"
    if decision.cause is not Cause.AMBIGUOUS or not ended_by_rule or left < 0:
        return _give_up(failed, decision, f"{failed.ending.message}. {decision.reason}")
    reason = f"It was ended by signal 9; {left} of its own retries are left after this one."
    return _relaunch(failed, replace(change, backoff_limit=left), reason, adopt=False)


def _relaunch(failed: Failed, change: Successor, reason: str, *, adopt: bool = True) -> Relaunch:
    """*change* with the attempt that has ended on its record."""
    attempt = _record(failed, reason)
    attempts = (*failed.track.attempts, attempt.dump())
    change = replace(change, track=replace(change.track, attempts=attempts))
    return Relaunch(change=change, adopt=adopt, attempt=attempt, reason=reason)


def _give_up(failed: Failed, decision: Decision, reason: str) -> GiveUp:
    return GiveUp(reason=reason, attempt=_record(failed, reason), cause=decision.cause)


def _same_again(failed: Failed, plan: MemoryPlan, *, in_place: bool) -> Successor:
    """The next Job with the same memory, and with what is left of the user's retries."""
    track, ending = failed.track, failed.ending
    _, request = memory_of(main_container(failed.job))
    limit = ending.memory
    left = int(failed.job["spec"].get("backoffLimit") or 0) - max(0, ending.failed - 1)
    return Successor(
        track=replace(track, number=track.number + 1, plan=plan),
        limit=limit,
        request=None if limit is not None and request == limit else request,
        backoff_limit=max(0, left),
        in_place=in_place,
    )


def _request_of(failed: Failed) -> int:
    return memory_of(main_container(failed.job))[1] or 0


def _record(failed: Failed, reason: str) -> AttemptRecord:
    ending = failed.ending
    return AttemptRecord(
        number=failed.track.number,
        memory=ending.memory,
        peak=ending.evidence.peak,
        outcome=_outcome(ending.evidence),
        reason=reason if reason.startswith(ending.message) else f"{ending.message}. {reason}",
        node=ending.evidence.node or "",
        runtime_s=ending.runtime_s,
        lost_s=ending.runtime_s,
    )


def _outcome(evidence: Evidence) -> str:
    if evidence.succeeded:
        return "completed"
    if evidence.oom_killed:
        return KILLED
    if evidence.disruption or evidence.storage_evicted:
        return "evicted"
    return "failed"


def _human(size: Quantity | None) -> str:
    return size.human if size is not None else "an unknown part"
