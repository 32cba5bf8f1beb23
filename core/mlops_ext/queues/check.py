"""Queues, workers, slots and the controllers that hold them: is it free of deadlock, and why not.

A controller holds a slot of a worker while its steps wait in queues for slots themselves. `check`
decides whether some order of events ends with controllers holding all slots that their steps wait
for. All instances of all pipelines may be enqueued at the same time. A free slot of a worker
takes any task from any of the worker's queues; a plain step ends after any time; a controller
enqueues a step as soon as everything the step comes after has ended, and ends with its last step.

Pure: plain data in, a verdict out.
"""

from __future__ import annotations

from mlops_ext.queues.bounds import fillable, fills_at_once, possibly_stuck
from mlops_ext.queues.explain import (
    explain_caution,
    explain_deadlock,
    explain_order,
    explain_unserved,
)
from mlops_ext.queues.model import Model, Placement, compile_topology
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

SEARCH_STATES = 60_000
"""States after which the search is given up: about two seconds, and far more than the few
thousand that 12 tasks on 12 slots need."""

SMALL_TASKS = 48
"""Tasks, all instances counted, up to which all those states are looked at. Four times the size
that is promised to be exact, because most such topologies still take milliseconds."""

LARGE_TASKS, LARGE_STATES = 400, 1_000
"""Tasks up to which some states are looked at: a deadlock, where there is one, is often near."""


def check(topology: Topology, *, search_states: int = SEARCH_STATES) -> Verdict:
    """Whether *topology* can deadlock, and the reasons if so.

    SAFE is always a proof. UNSAFE comes with a run that deadlocks (``exact``), or is a precaution
    on a topology too large to search. Small ones, 12 slots and 12 tasks at least, are exact.

    Args:
        topology: what runs, and where.
        search_states: how many states to look at before being cautious.
    """
    model = compile_topology(topology)
    broken = (*explain_unserved(model), *explain_order(model))
    if broken:
        return Verdict(outcome=Outcome.UNSAFE, exact=True, chains=broken)
    stuck = possibly_stuck(model)
    if not stuck:
        return Verdict(outcome=Outcome.SAFE, exact=True)
    tasks = sum(model.instances(node) for node in model.nodes)
    if tasks <= LARGE_TASKS:
        try:
            few = min(search_states, LARGE_STATES)
            found = find_deadlock(model, stuck, search_states if tasks <= SMALL_TASKS else few)
        except BudgetExceededError:
            pass
        else:
            return _proven(model, found)
    filled = fills_at_once(model, stuck)
    if filled is not None:
        return _proven(model, filled)
    chains = explain_caution(model, fillable(model, stuck))
    return Verdict(outcome=Outcome.UNSAFE, exact=False, chains=chains)


def _proven(model: Model, found: list[Placement] | None) -> Verdict:
    if found is None:
        return Verdict(outcome=Outcome.SAFE, exact=True)
    return Verdict(outcome=Outcome.UNSAFE, exact=True, chains=explain_deadlock(model, found))
