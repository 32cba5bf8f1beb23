"""What follows a step's Job that has failed. Pure: facts in, the next Job's changes out."""

from __future__ import annotations

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
from zenml_ext.kubernetes.objects.diagnosis import Termination
from zenml_ext.kubernetes.objects.job import (
    MAIN,
    JobChange,
    main_container,
    memory_of,
    run_id_of,
    step_name_of,
)
from zenml_ext.kubernetes.objects.state import AttemptState
from zenml_ext.memory.attempts import KILLED, AttemptRecord, in_our_words

_NO_CAPS = Caps()
# How the kubelet says that it evicted a pod for the node's memory.
_LOW_ON_MEMORY = "low on resource: memory"
# A step that is taken from its node this often will not finish without a look at the cluster.
_MAX_DISRUPTIONS = 20
# Less above a limit at which it was killed is not worth another attempt.
_WORTH = 1.05
# What ZenML requests for a step that nobody asked memory for.
_DEFAULT_REQUEST = Quantity.parse("400Mi")


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedJob:
    """A failed Job of a step, and what is known around it.

    Attributes:
        job: the Job.
        state: its state.
        termination: what ended it.
        caps: what the cluster can give; read only where memory is the cause.
    """

    job: Mapping[str, Any]
    state: AttemptState
    termination: Termination
    caps: Caps = _NO_CAPS

    @property
    def step_name(self) -> str:
        """Name of the step."""
        return step_name_of(self.job)

    @property
    def run_id(self) -> str:
        """Id of the pipeline run."""
        return run_id_of(self.job)

    @property
    def is_memory(self) -> bool:
        """Whether it ended for want of memory."""
        evidence = self.termination.evidence
        return evidence.oom_killed or evidence.memory_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Relaunch:
    """Run the step again.

    Attributes:
        change: how the next Job differs.
        resume: go on with the step run that is RUNNING; False: it is one of the user's own
            retries, which make a step run each.
        attempt: the attempt that ended, for the record.
        reason: why, in one sentence.
    """

    change: JobChange
    resume: bool
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


def is_node_exhaustion(failed: FailedJob) -> bool:
    """Whether the node ran out of memory, and not the step of its own limit.

    A container that is OOMKilled has used up its own limit, whatever was sampled before, unless
    the node's own events say that the node ran out; and a second time it gets more all the same.
    """
    evidence, limit = failed.termination.evidence, failed.termination.memory
    victim = failed.termination.victim
    if not evidence.oom_killed or (victim and evidence.container == victim.name):
        return False
    if limit is None:
        return True
    earlier = failed.state.attempts[-1:]
    is_again = any(one.get("memory_bytes") == limit and one["outcome"] == KILLED for one in earlier)
    return failed.termination.node_ran_out and not is_again


def after_failure(failed: FailedJob, policy: MemoryPolicy, *, in_place: bool) -> Relaunch | GiveUp:
    """What to do about a failed Job.

    Node exhaustion is no matter of more memory but of a request: the scheduler must know what
    the step needs. Nobody knows, so the step runs on a node without other steps of its run; its
    history knows afterwards.
    """
    state, termination = failed.state, failed.termination
    empty = MemoryPlan(ladder=(), reason="Nobody asked for memory.")
    known = state.plan or empty
    plan = known.capped(_caps_now(failed))
    if termination.victim and termination.victim.is_init and not termination.evidence.succeeded:
        reason = (
            f"{termination.message}, before the step began: raise the memory of that container."
        )
        return GiveUp(reason=reason, attempt=_record(failed, reason), cause=Cause.OUT_OF_MEMORY)
    attempt = Attempt(memory=termination.memory, oom_retries=state.oom_retries, container=MAIN)
    decision = in_our_words(policy.on_failure(plan, attempt, termination.evidence))
    change = _same_again(failed, known, in_place=in_place)  # caps are of this moment
    if isinstance(decision, Retry):
        return _more_memory(failed, plan, decision, change)
    if isinstance(decision, RetryElsewhere):
        if state.disruptions >= _MAX_DISRUPTIONS:
            times = f"It was taken from its node, or refused, {state.disruptions + 1} times"
            reason = f"{times}, the last time so: {termination.message}."
            return _give_up(failed, decision, reason)
        moved = replace(change.state, disruptions=state.disruptions + 1)
        change = replace(change, state=moved, avoid_node=termination.evidence.node or "")
        reason = decision.reason
        if termination.memory is None and _LOW_ON_MEMORY in termination.evidence.disruption:
            change, reason = _sized(failed, plan, change)
        return _relaunch(failed, change, reason)
    return _users_retry(failed, decision, change)


def after_refusal(failed: FailedJob, why: str, *, in_place: bool) -> Relaunch | None:
    """The step with less, if its plan was for more than can be had; None if the user asked for it.

    A quota or a LimitRange says how much that is. Nobody knows how large a node an autoscaler may
    add: the largest one there is comes first, then what the user asked for, then half the way.
    """
    plan, had = failed.state.plan, failed.termination.memory
    if plan is None or had is None:
        return None
    kills = (one for one in failed.state.attempts if one["outcome"] == KILLED)
    killed = max((int(one.get("memory_bytes") or 0) for one in kills), default=0)
    asked, room = plan.request or 0, failed.caps.node or 0
    fixed = replace(failed.caps, node=None).binding
    limit: int = had
    if fixed and fixed.memory < had:
        limit = fixed.memory if fixed.memory >= asked else had
    elif room >= asked and room > killed:
        limit = room
    else:
        limit = asked if asked > killed else (killed + had) // 2
    if not _WORTH * killed < limit < had:
        return None
    evidence = replace(failed.termination.evidence, refused=why)
    failed = replace(failed, termination=replace(failed.termination, evidence=evidence))
    change = replace(_same_again(failed, plan, in_place=in_place), limit=Quantity(limit))
    reason = f"{why}. It is tried with {Quantity(limit).human}: nobody asked for more."
    return _relaunch(failed, replace(change, request=None), reason)


def _caps_now(failed: FailedJob) -> Caps:
    """What limits the next attempt.

    The largest node is tried first; beyond it only a node that an autoscaler may add helps, and
    whether one comes shows when the pod waits for it.
    """
    had, node = failed.termination.memory, failed.caps.node
    return replace(failed.caps, node=None) if had and node and had >= node else failed.caps


def _more_memory(
    failed: FailedJob, plan: MemoryPlan, decision: Retry, change: JobChange
) -> Relaunch:
    counted = replace(change.state, oom_retries=failed.state.oom_retries + 1)
    change = replace(change, state=counted)
    if is_node_exhaustion(failed):
        return _relaunch(failed, *_sized(failed, plan, change))
    return _relaunch(failed, replace(change, limit=decision.memory, request=None), decision.reason)


def _sized(failed: FailedJob, plan: MemoryPlan, change: JobChange) -> tuple[JobChange, str]:
    """What follows if the node ran out: the scheduler is told what is known of the need."""
    cap = plan.cap.memory if plan.cap else None
    limit, evidence = failed.termination.memory, failed.termination.evidence
    if limit is not None:
        used = evidence.peak.human if evidence.peak else "an unknown part"
        reason = f"The node ran out of memory while it used {used} of its {limit.human}: it runs"
        away = replace(change, limit=limit, request=None, avoid_node=evidence.node or "")
        return away, f"{reason} again, on another node if there is one."
    asked = memory_of(main_container(failed.job))[1] or 0
    request = Quantity(max(evidence.peak or 0, asked, _DEFAULT_REQUEST))
    request = min(request, cap) if cap else request
    isolated = replace(change.state, isolated=True)
    within = f", with a limit of {cap.human}" if cap else ""
    limit = max(cap, request) if cap else None
    return replace(change, limit=limit, request=request, state=isolated), (
        "The node ran out of memory, and nobody knows what this step needs: it runs again on a"
        f" node without other steps of the run{within}."
    )


def _users_retry(failed: FailedJob, decision: Fail, change: JobChange) -> Relaunch | GiveUp:
    """A failure that is not ours: one of the user's own retries, where others cut them short.

    Kubernetes retries on its own what is counted; a signal 9 ends the Job by our rule, and pods
    that a kubelet refused may have used its retries up.
    """
    left = int(failed.job["spec"].get("backoffLimit") or 0) - failed.termination.failed
    cut_short = {Cause.AMBIGUOUS: "PodFailurePolicy", Cause.OTHER: "BackoffLimitExceeded"}
    if cut_short.get(decision.cause) != failed.termination.reason or left < 0:
        return _give_up(failed, decision, f"{failed.termination.message}. {decision.reason}")
    how = "was ended by signal 9" if decision.cause is Cause.AMBIGUOUS else "failed"
    reason = f"It {how}; {left} of its own retries are left after this one."
    return _relaunch(failed, replace(change, backoff_limit=left), reason, resume=False)


def _relaunch(
    failed: FailedJob, change: JobChange, reason: str, *, resume: bool = True
) -> Relaunch:
    """*change* with the attempt that has ended on its record."""
    attempt = _record(failed, reason)
    attempts = (*failed.state.attempts, attempt.dump())
    change = replace(change, state=replace(change.state, attempts=attempts))
    return Relaunch(change=change, resume=resume, attempt=attempt, reason=reason)


def _give_up(failed: FailedJob, decision: Decision, reason: str) -> GiveUp:
    return GiveUp(reason=reason, attempt=_record(failed, reason), cause=decision.cause)


def _same_again(failed: FailedJob, plan: MemoryPlan, *, in_place: bool) -> JobChange:
    """The next Job with the same memory, and with what is left of the user's retries."""
    state, termination = failed.state, failed.termination
    _, request = memory_of(main_container(failed.job))
    limit = termination.memory
    left = int(failed.job["spec"].get("backoffLimit") or 0) - max(0, termination.failed - 1)
    return JobChange(
        state=replace(state, number=state.number + 1, plan=plan),
        limit=limit,
        request=None if limit is not None and request == limit else request,
        backoff_limit=max(0, left),
        in_place=in_place,
    )


def _record(failed: FailedJob, reason: str) -> AttemptRecord:
    termination, evidence = failed.termination, failed.termination.evidence
    outcome, peak, limit = _outcome(evidence), evidence.peak, termination.memory
    is_told = reason.startswith(termination.message)
    if outcome == KILLED and limit and not is_node_exhaustion(failed) and not termination.victim:
        peak = max(peak or limit, limit)  # the last reading is older than the spike that killed it
    return AttemptRecord(
        number=failed.state.number,
        memory=limit,
        peak=peak,
        outcome=outcome,
        reason=reason if is_told else f"{termination.message}. {reason}",
        node=evidence.node or "",
        runtime_s=termination.runtime_s,
        lost_s=termination.runtime_s,
        input_bytes=failed.state.features.known_input,
        version=failed.state.version,
    )


def _outcome(evidence: Evidence) -> str:
    if evidence.succeeded:
        return "completed"
    if evidence.refused:
        return "refused"
    if evidence.oom_killed:
        return KILLED
    if evidence.disruption or evidence.storage_evicted:
        return "evicted"
    return "memory error" if evidence.memory_error else "failed"
