"""Fetching an object whole: one request for most, several side by side for what is large."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from joblib_ext.entries.large_entry import allocate
from joblib_ext.stores.objects.client import Answer, Client, tag_of

# From here on, ranges are fetched side by side: one connection seldom fills the line.
_APART = 64 << 20
_PART = 16 << 20
_SIDE_BY_SIDE = 4


def fetch(client: Client, key: str, **conditions: Any) -> tuple[Any, Any] | Answer:
    """The bytes of an object and its tag, or why there are none."""
    found = client.get(key, **conditions)
    if isinstance(found, Answer):
        return found
    tag, size = tag_of(found.meta), found.meta["size"]
    if size < _APART or "range" in conditions:
        data = client.run(lambda _: found.bytes())
    else:
        del found  # its connection is closed; the ranges have connections of their own
        data = _fetch_ranges(client, key, tag["e_tag"], size)
    return data if isinstance(data, Answer) else (data, tag)


def _fetch_ranges(client: Client, key: str, e_tag: str, size: int) -> Any:
    """The *size* bytes of one version of an object, in memory of their own, or an `Answer`."""
    whole = allocate(size)

    def fetch_part(start: int) -> Answer | None:
        part = fetch(client, key, range=(start, min(start + _PART, size)), if_match=e_tag)
        if isinstance(part, Answer):
            return part
        whole[start : start + len(part[0])] = memoryview(part[0])  # a short one does not verify
        return None

    with ThreadPoolExecutor(_SIDE_BY_SIDE, thread_name_prefix="mlops-ext-ranges") as pool:
        for trouble in pool.map(fetch_part, range(0, size, _PART)):
            if trouble is not None:
                return trouble
    return whole
