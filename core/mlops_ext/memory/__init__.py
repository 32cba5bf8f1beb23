"""How much memory the next attempt of a task gets: sizes, plans and policies.

One engine for every orchestrator. An orchestrator asks a `MemoryPolicy` three things::

    plan = policy.decide(key, features, request, caps)     # before the first attempt
    limit = plan.first_limit                                     # None: leave it without a limit
    ...
    decision = policy.on_failure(plan, attempt, evidence)  # after each failed attempt
    if isinstance(decision, Retry): limit = decision.memory
    ...
    policy.observe(key, features, peak, runtime_s)         # after a success
    policy.observe(key, features, limit, runtime_s, censored=True)   # after an OOM kill

Give the limit as request *and* limit: with a limit alone above the request, an out-of-memory kill
becomes the node's affair and hits a neighbour. Keep `plan` with the task (it pickles, and its
parts are plain) and count `Attempt.oom_retries` apart from the user's own retries.

Three policies come with it: "fixed" and "double", both a `RequestPolicy`, and "history", the
`mlops_ext.memory.history.HistoryPolicy`. Others register theirs with the hook
``mlops_ext_memory_policies``. Decisions are pure: no clock, no I/O.
"""

from __future__ import annotations

from mlops_ext.memory.model import (
    Attempt,
    Cap,
    Caps,
    Cause,
    Curve,
    Decision,
    Evidence,
    Fail,
    Features,
    InPlace,
    MemoryPlan,
    MemoryPolicy,
    Retry,
    RetryElsewhere,
    TaskKey,
)
from mlops_ext.memory.policies import MemorySettings, RequestPolicy, classify, escalate
from mlops_ext.memory.quantity import Quantity

__all__ = [
    "Attempt",
    "Cap",
    "Caps",
    "Cause",
    "Curve",
    "Decision",
    "Evidence",
    "Fail",
    "Features",
    "InPlace",
    "MemoryPlan",
    "MemoryPolicy",
    "MemorySettings",
    "Quantity",
    "RequestPolicy",
    "Retry",
    "RetryElsewhere",
    "TaskKey",
    "classify",
    "escalate",
]
