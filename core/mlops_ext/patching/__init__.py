"""Patches as data: version-checked, reversible changes of other packages' objects."""

from __future__ import annotations

from mlops_ext.patching.patchset import AppliedPatch, Outcome, Patch, PatchReport, PatchSet

__all__ = ["AppliedPatch", "Outcome", "Patch", "PatchReport", "PatchSet"]
