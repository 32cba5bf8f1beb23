"""The demo of ``doctor``: which faults the installed frameworks have, and which fixes fit."""

from __future__ import annotations

from collections.abc import Iterator

from mlops_ext.demo import Claim, Event, Progress
from mlops_ext.doctor import diagnose
from mlops_ext.extensions.discovery import extensions


def demo() -> Iterator[Event]:
    """Look at the frameworks that are really installed here."""
    yield Progress(text="looking at the installed frameworks")
    diagnosis = diagnose(extensions())
    for support in diagnosis.frameworks:
        name = support.framework.name
        needed = [fix for fix in diagnosis.fixes if fix.framework == name and fix.needed]
        yield Claim(
            what=f"{name} {support.version or '(not installed)'}",
            before=f"faults that a patch mends: {len(needed)}",
            after=support.framework.summary,
            holds=support.supported,
        )
    problems = [f.message for f in diagnosis.findings if f.severity.value == "problem"]
    yield Claim(
        what="problems that doctor finds",
        before="-",
        after="; ".join(problems) or "none",
        holds=diagnosis.healthy,
    )
