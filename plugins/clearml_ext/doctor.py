"""Checks of ``mlops-ext doctor`` for ClearML."""

from __future__ import annotations

from collections.abc import Iterable

from clearml_ext.settings import load_settings
from mlops_ext.hookspecs import Finding, Severity


def check_settings() -> Iterable[Finding]:
    """Whether the settings can be read; the server is not asked."""
    found = load_settings()
    yield Finding(
        check="clearml.settings",
        severity=Severity.OK,
        message=f"controllers go to {found.services_queue}; "
        f"refused pipelines are {'rerouted' if found.fix else 'not launched'}",
    )
