"""Which entries have to go so that a store keeps its limits. Pure: rows in, rows out."""

from __future__ import annotations

import datetime as dt
import math

_UNITS = {"K": 1024, "M": 1024**2, "G": 1024**3}

# Last access, size, folder, name.
Row = tuple[float, int, str, str]


def check_age(limit: dt.timedelta | None) -> None:
    """Refuse a limit that everything is older than, as joblib does.

    Raises:
        ValueError: it is negative.
    """
    if limit is not None and limit.total_seconds() < 0:
        raise ValueError("age_limit has to be a positive timedelta")


def size_of(limit: int | str | None) -> int | None:
    """A number of bytes, from joblib's way to write it."""
    if not isinstance(limit, str):
        return limit
    unit = _UNITS.get(limit[-1:].upper())
    try:
        return int(unit * float(limit[:-1])) if unit else int(limit)
    except ValueError as error:
        raise ValueError(f"bytes_limit = {limit!r} is not a size such as 500M") from error


def choose(
    rows: list[Row],
    size_limit: int | None,
    items_limit: int | None,
    age_limit: dt.timedelta | None,
) -> list[Row]:
    """The rows that have to go, exactly: oldest first, until every limit holds."""
    surplus_bytes = sum(row[1] for row in rows) - size_limit if size_limit is not None else 0
    surplus_items = len(rows) - items_limit if items_limit is not None else 0
    deadline = -math.inf
    if age_limit is not None:
        now = dt.datetime.now()  # noqa: DTZ005  # as joblib compares, in local time
        deadline = (now - age_limit).timestamp()
    rows.sort()
    freed = 0
    for number, (accessed, size, _, _) in enumerate(rows):
        if freed >= surplus_bytes and number >= surplus_items and accessed > deadline:
            return rows[:number]
        freed += size
    return rows
