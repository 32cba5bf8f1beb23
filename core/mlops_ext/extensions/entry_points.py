"""Entry points by group; the one module of discovery that is light enough for ``--help``."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator


def find_entry_points(group: str) -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of *group* by name; of one name the first on ``sys.path``."""
    return {point.name: point for point in reversed(all_entry_points(group))}


def owner_of(point: importlib.metadata.EntryPoint) -> str | None:
    """The distribution that publishes *point*, or None if its metadata does not tell."""
    try:
        return point.dist.name if point.dist else None
    except Exception:  # noqa: BLE001  # a foreign installation that is damaged
        return None


def all_entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
    """The entry points of *group* in the order of ``sys.path``, a name perhaps several times."""
    try:
        return list(importlib.metadata.entry_points(group=group))
    except Exception:  # noqa: BLE001  # one unreadable file fails all: leave out only that one
        return list(_readable_points(group))


def _readable_points(group: str) -> Iterator[importlib.metadata.EntryPoint]:
    import logging

    for distribution in importlib.metadata.distributions():
        try:
            yield from distribution.entry_points.select(group=group)
        except Exception:  # noqa: BLE001  # a foreign installation that is damaged
            where = getattr(distribution, "_path", distribution)
            logging.getLogger(__name__).warning("the entry points of %s cannot be read", where)
