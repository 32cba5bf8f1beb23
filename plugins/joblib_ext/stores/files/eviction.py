"""Keeping a store within limits: the entries that were not used for longest go first.

Up to `EXACT_UP_TO` entries the order is exact. Above, and where no age limit is given, the victims
are the oldest of a random sample of folders, twice as large as what has to go: a ``stat`` of
every entry costs far more than removing some. Numbers of entries are always exact; bytes of a
large store are estimated from the sample, on the safe side.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import os
import random
import statistics
from collections.abc import Sequence

from joblib_ext.stores.files.entry_files import EntryFiles
from joblib_ext.stores.files.scan import entry_names, shards, without_collector
from joblib_ext.stores.files.trash import empty_later
from joblib_ext.stores.layout import LEASE_MAX
from joblib_ext.stores.limits import Row, check_age, choose, size_of

# So many ``stat`` calls take some tens of milliseconds on a local disk.
EXACT_UP_TO = 20_000
# The victims are then the older half of the sample: with fewer, recent entries would suffer.
_SAMPLE_FACTOR = 2
# An estimated size may be this many standard errors too low before the limit is missed.
_SAFETY_DEVIATIONS = 3.0


def enforce(
    store: EntryFiles,
    bytes_limit: int | str | None,
    items_limit: int | None,
    age_limit: dt.timedelta | None,
) -> int:
    """Remove entries until the limits hold; the number that was removed.

    Raises:
        ValueError: a limit is not a size, or negative.
    """
    check_age(age_limit)
    size_limit = size_of(bytes_limit)
    empty_later(store)
    with without_collector():
        names = _list(shards(store.layout))
        count = sum(len(found) for found in names.values())
        if count <= EXACT_UP_TO or age_limit is not None:
            rows = _stat(names)
            victims = choose(rows, size_limit, items_limit, age_limit)
        else:
            victims = _choose_from_sample(names, count, size_limit, items_limit)
        _remove(victims)
    return len(victims)


def _list(folders: Sequence[str]) -> dict[str, list[str]]:
    """Names of the entries by folder."""
    found = {}
    for folder in folders:
        with contextlib.suppress(OSError):
            found[folder] = entry_names(os.listdir(folder))  # noqa: PTH208  # names are enough
    return found


def _stat(names: dict[str, list[str]]) -> list[Row]:
    rows: list[Row] = []
    stat, add = os.stat, rows.append
    for folder, found in names.items():
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)  # names below it need no walk from the root
            try:
                for name in found:
                    try:
                        info = stat(name, dir_fd=descriptor)
                    except OSError:
                        continue
                    if info.st_size >= LEASE_MAX:
                        add((info.st_atime, info.st_size, folder, name))
            finally:
                os.close(descriptor)
    return rows


def _choose_from_sample(
    names: dict[str, list[str]], count: int, size_limit: int | None, items_limit: int | None
) -> list[Row]:
    """The oldest of a random sample of folders, enough of them for the limits to hold."""
    folders = list(names)
    random.shuffle(folders)
    surplus = max(0, count - items_limit) if items_limit is not None else 0
    if size_limit is None and not surplus:
        return []
    wanted = max(_SAMPLE_FACTOR * surplus, EXACT_UP_TO // 10)
    rows: list[Row] = []
    while folders:
        part: dict[str, list[str]] = {}
        while folders and sum(map(len, part.values())) + len(rows) < wanted:
            folder = folders.pop()
            part[folder] = names[folder]
        rows += _stat(part)
        by_bytes = _surplus_by_bytes(rows, count, size_limit)
        if _SAMPLE_FACTOR * max(surplus, by_bytes) <= len(rows):
            break
        wanted = max(_SAMPLE_FACTOR * max(surplus, by_bytes), len(rows) + 1)
    rows.sort()
    goal_bytes = _estimate(rows, count) - size_limit if size_limit is not None else 0.0
    freed = number = 0
    while number < len(rows) and (number < surplus or freed < goal_bytes):
        freed += rows[number][1]
        number += 1
    return rows[:number]


def _estimate(rows: list[Row], count: int) -> float:
    """Bytes of the whole store, on the high side by some standard errors of the sample."""
    sizes = [row[1] for row in rows]
    if len(rows) >= count:
        return float(sum(sizes))
    error = statistics.pstdev(sizes) / math.sqrt(len(sizes))
    return count * (statistics.fmean(sizes) + _SAFETY_DEVIATIONS * error)


def _surplus_by_bytes(rows: list[Row], count: int, size_limit: int | None) -> int:
    """About how many entries have to go for the bytes."""
    if size_limit is None or not rows:
        return 0
    mean = statistics.fmean(row[1] for row in rows) or 1.0
    return max(0, math.ceil((_estimate(rows, count) - size_limit) / mean))


def _remove(victims: list[Row]) -> None:
    names: dict[str, list[str]] = {}
    for _, _, folder, name in victims:
        names.setdefault(folder, []).append(name)
    unlink = os.unlink
    for folder, found in names.items():
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                for name in found:
                    try:
                        unlink(name, dir_fd=descriptor)
                    except OSError:
                        continue  # somebody removed it meanwhile
            finally:
                os.close(descriptor)
