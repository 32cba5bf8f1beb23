"""Queues, workers, slots and the controllers that hold them: is it free of deadlock, and why not.

A controller holds a slot of a worker while its steps wait in queues for slots themselves. `check`
decides whether some order of events ends with controllers holding all slots that their steps wait
for. All instances of all pipelines may be enqueued at the same time. A free slot of a worker
takes any task from any of the worker's queues; a plain step ends after any time; a controller
enqueues a step as soon as everything the step comes after has ended, and ends with its last step.

Pure: plain data in, a verdict out.
"""

from __future__ import annotations

from mlops_ext.queues.bounds import possibly_stuck
from mlops_ext.queues.explain import (
    explain_caution,
    explain_deadlock,
    explain_order,
    explain_unserved,
)
from mlops_ext.queues.model import compile_topology
from mlops_ext.queues.search import BudgetExceededError, find_deadlock
from mlops_ext.queues.topology import (
    Chain,
    ChainKind,
    Hold,
    Outcome,
    Pipeline,
    Step,
    Topology,
    Verdict,
    Worker,
)

__all__ = [
    "Chain",
    "ChainKind",
    "Hold",
    "Outcome",
    "Pipeline",
    "Step",
    "Topology",
    "Verdict",
    "Worker",
    "check",
]

# Moves after which a search is given up: about two seconds, and far more than the few thousand
# that 12 tasks on 12 slots need.
MOVES = 120_000


def check(topology: Topology, *, moves: int = MOVES) -> Verdict:
    """Whether *topology* can deadlock, and the reasons if so.

    SAFE is always a proof. UNSAFE comes with a run that deadlocks (``exact``), or is a precaution
    on a topology too large to search. Small ones, 12 slots and 12 tasks at least, are exact.

    Args:
        topology: what runs, and where.
        moves: how many moves of a search to try before being cautious.
    """
    model = compile_topology(topology)
    broken = (*explain_unserved(model), *explain_order(model))
    if broken:
        return Verdict(outcome=Outcome.UNSAFE, exact=True, chains=broken)
    stuck, blocked = possibly_stuck(model)
    try:
        found = find_deadlock(model, stuck, blocked, moves) if stuck else None
    except BudgetExceededError:
        chains = explain_caution(model, blocked())
        return Verdict(outcome=Outcome.UNSAFE, exact=False, chains=chains)
    if found is None:
        return Verdict(outcome=Outcome.SAFE, exact=True)
    return Verdict(outcome=Outcome.UNSAFE, exact=True, chains=explain_deadlock(model, found))
