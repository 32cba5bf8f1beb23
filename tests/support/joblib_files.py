"""What stands in a shared cache."""

from pathlib import Path

__all__ = ["stored"]


def stored(location, pattern="items/*/*/*/*"):
    """The files of entries and leases below a cache's *location*."""
    return [path for path in Path(location).rglob(pattern) if path.is_file()]
