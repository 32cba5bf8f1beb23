"""A picture of memory over attempts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlops_ext.errors import MissingExtraError
from zenml_ext.memory.report import StepMemory

_GIB = 1024**3


def plot(steps: Sequence[StepMemory], file: Path) -> None:
    """Write a bar chart of limits and peaks, attempt by attempt, to *file*.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: *file* cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    rows = [(step, attempt) for step in steps for attempt in step.attempts]
    figure = Figure(figsize=(8, max(2.0, 0.35 * len(rows) + 1.2)), layout="constrained")
    axes = figure.add_subplot()
    colours = {"completed": "tab:green", "killed for memory": "tab:red", "evicted": "tab:orange"}
    for place, (_, attempt) in enumerate(rows):
        colour = colours.get(attempt.outcome, "tab:gray")
        if attempt.memory is not None:
            axes.barh(place, attempt.memory / _GIB, color="none", edgecolor="black", height=0.8)
        if attempt.peak is not None:
            axes.barh(place, attempt.peak / _GIB, color=colour, height=0.55)
    axes.set_yticks(range(len(rows)), [f"{s.step}, attempt {a.number}" for s, a in rows])
    axes.invert_yaxis()
    axes.set_xlabel("memory (GiB): frame is the limit, bar the peak; red was killed for memory")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file)
