"""The hooks that core itself answers: the memory policies that come with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mlops_ext.hookspecs import hookimpl

if TYPE_CHECKING:
    from mlops_ext.memory import MemoryPolicy

__all__ = ["mlops_ext_memory_policies"]


@hookimpl
def mlops_ext_memory_policies() -> Mapping[str, MemoryPolicy]:
    """``fixed``, ``double`` and ``history``, with the settings of section ``memory``."""
    from pathlib import Path

    from mlops_ext.history import History, HistoryPolicy, default_path
    from mlops_ext.memory import DoublePolicy, FixedPolicy, MemorySettings
    from mlops_ext.settings import load

    settings = load(MemorySettings, "memory")
    path = Path(settings.history).expanduser() if settings.history else default_path()
    return {
        "fixed": FixedPolicy(settings=settings),
        "double": DoublePolicy(settings=settings),
        "history": HistoryPolicy(records=History(path), settings=settings),
    }
