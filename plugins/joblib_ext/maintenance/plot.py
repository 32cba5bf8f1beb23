"""A picture of a store: size and age by function."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlops_ext.errors import MissingExtraError

if TYPE_CHECKING:
    from joblib_ext.maintenance.stats import Stats, VersionStats

_MOST = 20
"""Functions shown; the rest is one bar."""
_DAY_S = 86_400.0
_BYTES_A_MIB = 2**20


def draw(stats: Stats, path: Path) -> None:
    """Write a picture to *path*, in the format its suffix names.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "plot") from error
    by_function: dict[str, list[VersionStats]] = defaultdict(list)
    for version in stats.versions:
        by_function[version.function].append(version)
    ranked = sorted(by_function, key=lambda name: sum(v.size for v in by_function[name]))[-_MOST:]
    figure: Any = Figure(figsize=(11, 2 + 0.35 * max(len(ranked), 1)), layout="constrained")
    sizes, ages = figure.subplots(1, 2, sharey=True)
    labels = [name.rsplit("/", 1)[-1] for name in ranked]
    for row, name in enumerate(ranked):
        left = 0.0
        for number, version in enumerate(by_function[name]):
            width = version.size / _BYTES_A_MIB
            sizes.barh(row, width, left=left, color=f"C{number % 10}")
            left += width
    sizes.set_yticks(range(len(ranked)), labels)
    sizes.set_xlabel("MiB, one colour a version")
    days = [[age / _DAY_S for v in by_function[name] for age in v.ages_s] for name in ranked]
    if days:
        ages.boxplot(days, orientation="horizontal", positions=range(len(ranked)), whis=(0, 100))
        ages.set_yticks(range(len(ranked)), labels)
    ages.set_xlabel("age in days")
    figure.suptitle(f"{stats.entries} entries, {stats.size / _BYTES_A_MIB:.1f} MiB")
    figure.savefig(path)
