"""Keeping a store within limits: the entries that were not used for longest go first.

Up to `EXACT_UP_TO` entries the order is exact. Above, and where no age limit is given, the victims
are the oldest of a random sample of folders, twice as large as what has to go: a ``stat`` of
every entry costs far more than removing some. Numbers of entries are always exact; bytes of a
large store are estimated from the sample, on the safe side.
"""

from __future__ import annotations

import contextlib
import math
import random
from itertools import groupby
from operator import itemgetter

from joblib_ext.stores.files.entry_files import EntryFiles
from joblib_ext.stores.files.moving import discard
from joblib_ext.stores.files.scan import entry_names, rows_in, shards
from joblib_ext.stores.files.trash import empty_later
from joblib_ext.stores.limits import Limits, Row, choose
from mlops_ext.files import folder_below
from mlops_ext.processes.collector import without_collector

# So many ``stat`` calls take some tens of milliseconds on a local disk.
EXACT_UP_TO = 20_000
# The victims are then the older half of the sample: with fewer, recent entries would suffer.
_SAMPLE_FACTOR = 2
# An estimated size may be this many standard errors too low before the limit is missed.
_SAFETY_DEVIATIONS = 3.0


def enforce(store: EntryFiles, limits: Limits) -> int:
    """Remove entries until the limits hold; the number that was removed."""
    empty_later(store)
    with without_collector():
        listed: dict[str, list[str] | None] = {}
        count = 0
        for folder in shards(store.layout):
            names = entry_names(store.names_in(folder))
            count += len(names)
            listed[folder] = names if count <= EXACT_UP_TO else None  # not all of a large store's
        if count <= EXACT_UP_TO or limits.before > -math.inf:
            rows = [row for folder, names in listed.items() for row in rows_in(folder, names)]
            victims = choose(rows, limits)
        else:
            victims = _choose_from_sample(listed, count, limits)
        for folder, found in groupby(sorted(victims, key=itemgetter(2)), itemgetter(2)):
            with contextlib.suppress(OSError), folder_below(store.layout.location, folder) as open_:
                for row in found:
                    discard(row[3], open_)
    return len(victims)


def _choose_from_sample(
    listed: dict[str, list[str] | None], count: int, limits: Limits
) -> list[Row]:
    """The oldest of a random sample of folders, enough of them for the limits to hold.

    Bytes of the whole store are estimated on the high side by some standard errors.
    """
    left = random.sample(list(listed.items()), len(listed))
    surplus = max(0, count - limits.items) if limits.items is not None else 0
    if not surplus and limits.size is None:
        return []
    rows: list[Row] = []
    number, held, squares, surplus_bytes = surplus, 0, 0, 0.0
    while left and len(rows) < max(_SAMPLE_FACTOR * number, EXACT_UP_TO // 10):
        new = rows_in(*left.pop())
        rows += new
        held += sum(row[1] for row in new)
        squares += sum(row[1] ** 2 for row in new)
        if limits.size is not None and rows:
            mean = held / len(rows)
            error = math.sqrt(max(0.0, squares / len(rows) - mean**2) / len(rows))
            whole = count * (mean + _SAFETY_DEVIATIONS * error) if left else held
            surplus_bytes = max(0.0, whole - limits.size)
            number = max(surplus, math.ceil(surplus_bytes / mean))
    return choose(rows, Limits(held - surplus_bytes, len(rows) - surplus))
