"""A step's memory plan from what ZenML's server recorded of its earlier runs.

The server keeps what they needed, so the history of the policy that learns is made from it each
time: a file in a pod is lost, and one on a shared volume would be told the same runs again by
every orchestrator.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mlops_ext.memory import Caps, Features, MemoryPlan, MemoryPolicy
from mlops_ext.redaction import redacted
from zenml_ext.memory import records
from zenml_ext.memory.attempts import KILLED, AttemptRecord
from zenml_ext.memory.policy import StepFacts, function_of

log = logging.getLogger(__name__)

_ENDED = 'oneof:["completed","failed"]'
# Earlier runs of a step that a plan looks at: one page of the server's answer.
_HISTORY = 30
# Runs of the pipeline in which they are looked for.
_RUNS = 200
# Runs that one request names: its address stays below 4 KiB, which any proxy takes.
_ASKED = 50


def plan_from_server(facts: StepFacts, features: Features) -> MemoryPlan:
    """The memory plan of a step about to start."""
    policy, grows = facts.policy, False
    if policy.learns:
        policy = _with_records_of_its_own(policy)
        for attempt in past_attempts(facts):
            size = attempt.peak if attempt.completed else attempt.memory or attempt.peak
            if size is not None:
                policy.observe(
                    replace(facts.key, version=attempt.version),
                    Features(input_bytes=attempt.input_bytes),
                    size,
                    attempt.runtime_s,
                    censored=not attempt.completed,
                    curve=attempt.curve,
                    resizes_s=[s if s >= 0 else math.inf for s in attempt.resizes_s],
                )
                grows = grows or any(s >= 0 for s in attempt.resizes_s)
    plan = facts.plan(policy, features, Caps(max_memory=facts.max_memory))
    if plan.in_place and plan.first_limit and not grows:
        # Nothing shows that pods can grow here, and a low start would be a sure kill.
        plan = replace(plan, in_place=replace(plan.in_place, start=plan.first_limit))
    log.info("Step %s: %s", facts.name, plan.reason)
    return plan


def past_attempts(facts: StepFacts) -> Sequence[AttemptRecord]:
    """Attempts of earlier runs of the step that tell its need, oldest first; none if unknown.

    Those that completed tell a peak; those that were killed for memory, also of a step that
    never got through, tell that it needs more than they had.
    """
    from zenml.client import Client

    function, rows = function_of(facts.step), list[Any]()
    try:
        runs = Client().list_pipeline_runs(
            pipeline_name=facts.pipeline, sort_by="desc:created", size=_RUNS
        )
        known = [str(run.id) for run in runs.items]  # a step run does not name its pipeline
        for first in range(0, len(known), _ASKED):
            page = Client().list_run_steps(
                name=f"contains:{function}",
                pipeline_run_id=f"oneof:{json.dumps(known[first : first + _ASKED])}",
                sort_by="desc:created",
                size=_HISTORY,
                hydrate=True,
                status=_ENDED,
            )
            rows += [one for one in page.items if function_of(one, one.name) == function]
            if len(rows) >= _HISTORY:
                break
    except Exception as error:  # noqa: BLE001 - a hint: the server's hiccup must not fail a step
        log.debug("no history of %s: %s", facts.name, redacted(error))
        return ()
    return [
        attempt
        for step_run in reversed(rows[:_HISTORY])
        for attempts in records.read([step_run]).values()
        for attempt in attempts
        if attempt.completed or attempt.outcome == KILLED
    ]


def _with_records_of_its_own(policy: MemoryPolicy) -> MemoryPolicy:
    """*policy*; ours that learns with an empty history, to be filled from ZenML's server."""
    try:
        from mlops_ext.memory.history import HistoryPolicy, InMemoryHistory
    except ImportError:  # without NumPy
        return policy
    if not isinstance(policy, HistoryPolicy):
        return policy
    return HistoryPolicy(records=InMemoryHistory(), settings=policy.settings)
