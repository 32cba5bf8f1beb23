"""Which entries have to go so that a store keeps its limits. Pure: rows in, rows out."""

from __future__ import annotations

import datetime as dt
import math
from typing import NamedTuple

from joblib_ext.settings import Bytes


class Row(NamedTuple):
    """One entry: what decides whether it stays comes first."""

    used: float
    size: int
    folder: str
    name: str


class Limits(NamedTuple):
    """What a store may hold.

    Attributes:
        size: bytes of all entries; None: any number.
        items: number of entries; None: any.
        before: entries that were last used before go, in seconds since the epoch.
    """

    size: float | None = None
    items: int | None = None
    before: float = -math.inf

    @classmethod
    def of(
        cls, size: int | str | None, items: int | None, age: dt.timedelta | None = None
    ) -> Limits:
        """The limits, in joblib's way to write them.

        Raises:
            ValueError: one is not a size, or negative.
        """
        if isinstance(size, str):
            size = Bytes.parse(size)
        if age is None:
            return cls(size, items)
        if age.total_seconds() < 0:
            raise ValueError("age_limit has to be a positive timedelta")
        now = dt.datetime.now()  # noqa: DTZ005  # as joblib compares, in local time
        return cls(size, items, (now - age).timestamp())


def choose(rows: list[Row], limits: Limits) -> list[Row]:
    """The rows that have to go, exactly: oldest first, until every limit holds."""
    surplus_bytes = sum(row[1] for row in rows) - limits.size if limits.size is not None else 0
    surplus_items = len(rows) - limits.items if limits.items is not None else 0
    rows.sort()
    freed = 0
    for number, (used, size, _, _) in enumerate(rows):
        if freed >= surplus_bytes and number >= surplus_items and used > limits.before:
            return rows[:number]
        freed += size
    return rows
