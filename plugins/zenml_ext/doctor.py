"""Checks of zenml_ext for ``mlops-ext doctor``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib import metadata

from mlops_ext import settings, tempdirs
from mlops_ext.errors import TempDirError
from mlops_ext.hookspecs import Finding, Severity


def good(check: str, message: str, advice: str = "") -> Finding:
    """All is well with *check*."""
    return Finding(check=check, severity=Severity.OK, message=message, advice=advice)


def note(check: str, message: str, advice: str = "") -> Finding:
    """Something is worth knowing."""
    return Finding(check=check, severity=Severity.NOTE, message=message, advice=advice)


def problem(check: str, message: str, advice: str = "") -> Finding:
    """Something is wrong."""
    return Finding(check=check, severity=Severity.PROBLEM, message=message, advice=advice)


def temp_dir() -> Iterator[Finding]:
    """Whether the configured temporary directory can be used."""
    check = "zenml.temp-dir"
    chosen = settings.load(settings.CoreSettings).temp_dir
    if chosen is None:
        advice = "set MLOPS_EXT_TEMP_DIR, or temp_dir of the orchestrator, to choose another place"
        yield good(check, f"steps use {tempfile.gettempdir()}, as tempfile finds it", advice)
        return
    try:
        place = tempdirs.check_root(chosen)
    except TempDirError as error:
        yield problem(check, str(error))
        return
    yield good(check, f"steps use {place}, which can be written to")
    if kept := tempdirs.reap(place).failed:
        words = f"{len(kept)} directories of dead processes cannot be removed yet"
        yield note(check, words, f"see who has files open below {kept[0]}")


def memory_limits() -> Iterator[Finding]:
    """Who enforces the memory limits of local_oom here."""
    from zenml_ext.memory import cgroup

    check, who = "zenml.memory-limits", "local_oom lets the kernel enforce memory limits"
    group = cgroup.create(64 * 1024**2)
    if group is not None:
        group.close()
        yield good(check, f"{who} (cgroup version {group.version})")
        return
    yield note(
        check,
        "no memory cgroup can be made here: local_oom watches its steps instead",
        "to have the kernel enforce limits, run below a delegated cgroup, such as"
        " systemd-run --user --scope -p Delegate=yes",
    )


def init_hook() -> Iterator[Finding]:
    """Whether ZenML calls us when it is imported; a stale installation lacks the entry point."""
    check = "zenml.init-hook"
    points = metadata.entry_points().select(group="zenml.init_hooks")
    if any(point.value.startswith("zenml_ext.") for point in points):
        yield good(check, "ZenML calls mlops-ext when it is imported")
    else:
        words = "ZenML does not call mlops-ext: MLOPS_EXT_TEMP_DIR has no effect on it"
        advice = "install mlops-ext again: its entry points are older than its code"
        yield problem(check, words, advice)
