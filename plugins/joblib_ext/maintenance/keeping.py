"""Keeping the limits that a store's options set, in the background, about once an hour."""

from __future__ import annotations

import datetime as dt
import threading
import time

from joblib_ext.maintenance.stats import exact_version
from joblib_ext.stores.kinds import Store
from joblib_ext.stores.limits import Limits

_EVERY_S = 3600.0


class Keeper:
    """Hears of each write; from time to time it starts a thread that enforces the limits."""

    def __init__(self, store: Store) -> None:
        self._store, self._next = store, 0.0

    def __call__(self) -> None:
        """Something was written."""
        now = time.monotonic()
        given = self._store.options
        if now >= self._next and any((given.max_bytes, given.max_age, given.keep_versions)):
            self._next = now + _EVERY_S
            threading.Thread(target=self._run, name="mlops-ext-limits", daemon=True).start()

    def _run(self) -> None:
        try:
            if self._store.claim(f"{int(time.time() / _EVERY_S)}"):  # one process an hour
                keep_limits(self._store)
        except Exception as error:  # noqa: BLE001  # a thread of ours must not end with a traceback
            self._store.events.warn_once("limits", f"the limits could not be kept: {error}", error)


def keep_limits(store: Store) -> None:
    """Remove old versions, and entries that were not used for longest, until the limits hold."""
    options = store.options
    if options.keep_versions is not None:
        _drop_versions(store, options.keep_versions)
    age = dt.timedelta(seconds=options.max_age) if options.max_age is not None else None
    if options.max_bytes is not None or age is not None:
        store.shrink(Limits.of(options.max_bytes, None, age))


def _drop_versions(store: Store, most: int) -> None:
    used: dict[str, dict[str, float]] = {}
    for found in store.walk():
        versions = used.setdefault(found.function, {})
        versions[found.namespace] = max(found.used, versions.get(found.namespace, 0.0))
    for function, versions in used.items():
        for namespace in sorted(versions, key=versions.__getitem__, reverse=True)[most:]:
            store.clear(exact_version(store, function, namespace).folder)
