"""Entry points by group; the one module of discovery that is light enough for ``--help``."""

from __future__ import annotations

import importlib.metadata

__all__ = ["find_entry_points"]


def find_entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
    """The entry points of *group*, each name once (the first on ``sys.path`` wins)."""
    points: dict[str, importlib.metadata.EntryPoint] = {}
    for point in importlib.metadata.entry_points(group=group):
        points.setdefault(point.name, point)
    return list(points.values())
