"""The hooks that core itself answers: the memory policies that come with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlops_ext.hookspecs import hookimpl

if TYPE_CHECKING:
    from mlops_ext.memory import MemoryPolicy
    from mlops_ext.memory.history import Records

log = logging.getLogger(__name__)


@hookimpl
def mlops_ext_memory_policies() -> Mapping[str, MemoryPolicy]:
    """``fixed``, ``double`` and ``history``, with the settings of section ``memory``."""
    from mlops_ext.memory import MemorySettings, RequestPolicy
    from mlops_ext.memory.history import HistoryPolicy
    from mlops_ext.settings import load

    settings = load(MemorySettings, "memory")
    return {
        "fixed": RequestPolicy(settings=replace(settings, growth=1.0)),
        "double": RequestPolicy(settings=settings),
        "history": HistoryPolicy(records=_records(settings.history), settings=settings),
    }


def _records(path: str) -> Records:
    """The history in the file *path*, by default in the user's data directory.

    A user without a home directory (a container's arbitrary uid) gets one that ends with the
    process, and a warning that says so.
    """
    from mlops_ext.memory.history import History, InMemoryHistory, default_path

    try:
        return History(Path(path).expanduser() if path else default_path())
    except RuntimeError as error:
        log.warning("peaks are kept for this process only: %s Set memory.history", error)
        return InMemoryHistory()
