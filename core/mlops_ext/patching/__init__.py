"""Patches as data: version-checked, reversible changes of other packages' objects."""

from __future__ import annotations

from mlops_ext.patching.patch import AppliedPatch, Outcome, Patch, PatchReport
from mlops_ext.patching.patchset import PatchSet

__all__ = ["AppliedPatch", "Outcome", "Patch", "PatchReport", "PatchSet"]
