"""Memory plans as JSON, and plans made again once the caps of a cluster are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mlops_ext.memory import Cap, Caps, InPlace, MemoryPlan, Quantity

__all__ = ["cap_plan", "dump_plan", "load_plan"]


def dump_plan(plan: MemoryPlan) -> dict[str, Any]:
    """The plan as JSON data."""
    return {
        "ladder": [int(rung) for rung in plan.ladder],
        "reason": plan.reason,
        "growth": plan.growth,
        "cap": {"memory": int(plan.cap.memory), "name": plan.cap.name} if plan.cap else None,
        "in_place": {
            "start": int(plan.in_place.start),
            "threshold": plan.in_place.threshold,
            "growth": plan.in_place.growth,
            "ceiling": int(plan.in_place.ceiling) if plan.in_place.ceiling else None,
        }
        if plan.in_place
        else None,
    }


def load_plan(found: Mapping[str, Any]) -> MemoryPlan:
    """The plan that `dump_plan` wrote."""
    cap, grows = found["cap"], found["in_place"]
    return MemoryPlan(
        ladder=tuple(Quantity(rung) for rung in found["ladder"]),
        reason=found["reason"],
        growth=found["growth"],
        cap=Cap(memory=Quantity(cap["memory"]), name=cap["name"]) if cap else None,
        in_place=InPlace(
            start=Quantity(grows["start"]),
            threshold=grows["threshold"],
            growth=grows["growth"],
            ceiling=Quantity(grows["ceiling"]) if grows["ceiling"] else None,
        )
        if grows
        else None,
    )


def cap_plan(plan: MemoryPlan, caps: Caps) -> MemoryPlan:
    """*plan* under *caps* too: rungs above the least cap become that cap."""
    bound = min(
        (cap for cap in (plan.cap, caps.binding) if cap is not None),
        key=lambda cap: cap.memory,
        default=None,
    )
    if bound is None:
        return plan
    rungs = sorted({min(rung, bound.memory) for rung in plan.ladder})
    return MemoryPlan(
        ladder=tuple(rungs),
        reason=plan.reason,
        in_place=plan.in_place,
        cap=bound,
        growth=plan.growth,
    )
