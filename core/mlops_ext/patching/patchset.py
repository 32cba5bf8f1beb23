"""Patches that are applied and reverted together.

Applying twice is a no-op. Reverting restores the original exactly. A target that is not what the
patch was written against is a conflict: nothing is changed, nothing is guessed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import TracebackType

from typing_extensions import Self

from mlops_ext.errors import PatchConflictError
from mlops_ext.patching.patch import (
    AppliedPatch,
    Outcome,
    Patch,
    PatchReport,
    find_slot,
    install,
)
from mlops_ext.processes.forks import in_forked_child
from mlops_ext.versions import in_range, installed_version

log = logging.getLogger(__name__)

Versions = Callable[[str], "str | None"]
"""Gives the installed version of a distribution, or None."""


_applied: dict[str, AppliedPatch] = {}
_lock = threading.RLock()


@in_forked_child
def _after_fork() -> None:
    global _lock
    _lock = threading.RLock()


@dataclass(slots=True)
class PatchSet:
    """Patches that are applied and reverted together: all, or none.

    Use it as a context manager to revert at the end what it applied.

    Attributes:
        patches: the patches, applied in this order, reverted in the opposite one.
        notify: called with each report of something new; what it raises is logged.
        versions: gives installed versions.
    """

    patches: Iterable[Patch]
    notify: Callable[[PatchReport], object] = lambda _: None
    versions: Versions = installed_version
    _mine: list[AppliedPatch] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.patches = tuple(self.patches)

    def status(self) -> list[PatchReport]:
        """What stands now, patch by patch; imports and changes nothing."""
        return [self._status(patch) for patch in self.patches]

    def apply(self) -> list[PatchReport]:
        """Apply every patch that the installed versions need.

        Raises:
            PatchConflictError: one could not be applied; those applied before it in this call
                were reverted.
        """
        reports: list[PatchReport] = []
        mine: list[AppliedPatch] = []
        with _lock:
            for patch in self.patches:
                try:
                    report = self._apply(patch, mine)
                except BaseException as error:
                    self._undo(mine)
                    if isinstance(error, PatchConflictError):
                        self._tell([self._report(patch, Outcome.CONFLICT, str(error), error)])
                    raise
                reports.append(report)
            self._mine.extend(mine)
        self._tell(reports)
        return reports

    def revert(self) -> list[PatchReport]:
        """Revert what this set applied, last first; what is no longer ours is left and reported.

        Raises:
            PatchConflictError: the first conflict, after everything else was reverted.
        """
        reports: list[PatchReport] = []
        kept: list[AppliedPatch] = []
        with _lock:
            for applied in reversed(self._mine):
                try:
                    applied.revert()
                except PatchConflictError as error:
                    kept.insert(0, applied)
                    report = self._report(applied.patch, Outcome.CONFLICT, str(error), error)
                else:
                    _applied.pop(applied.patch.id, None)
                    report = self._report(applied.patch, Outcome.REVERTED)
                reports.append(report)
            self._mine = kept
        self._tell(reports)
        for report in reports:
            if report.error is not None:
                raise report.error
        return reports

    def __enter__(self) -> Self:
        self.apply()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self.revert()
        except PatchConflictError as conflict:
            if error is None:
                raise
            log.warning("patch left in place: %s", conflict)

    def _status(self, patch: Patch) -> PatchReport:
        applied = _applied.get(patch.id)
        if applied is not None and applied.in_force:
            return self._report(patch, Outcome.APPLIED)
        return self._skip(patch) or self._report(patch, Outcome.NOT_APPLIED)

    def _skip(self, patch: Patch) -> PatchReport | None:
        """Why the installed version gets no patch, or None where it gets one."""
        version = self.versions(patch.distribution)
        if version is None:
            return self._report(patch, Outcome.NOT_INSTALLED)
        if not in_range(version, patch.versions):
            detail = f"written for {patch.distribution} {patch.versions}"
            return self._report(patch, Outcome.OUT_OF_RANGE, detail)
        if not in_range(version, patch.needed):
            detail = f"only {patch.distribution} {patch.needed} has the fault"
            return self._report(patch, Outcome.NOT_NEEDED, detail)
        return None

    def _apply(self, patch: Patch, mine: list[AppliedPatch]) -> PatchReport:
        skipped = self._skip(patch)
        if skipped is not None:
            return skipped
        slot = find_slot(patch)  # importing the framework may fire a hook that applies this patch
        earlier = _applied.get(patch.id)
        if earlier is not None and earlier.in_force and earlier.slot == slot:
            return self._report(patch, Outcome.ALREADY)
        applied = install(patch, slot)
        _applied[patch.id] = applied
        mine.append(applied)
        return self._report(patch, Outcome.APPLIED)

    def _undo(self, mine: list[AppliedPatch]) -> None:
        for applied in reversed(mine):
            _applied.pop(applied.patch.id, None)
            try:
                applied.revert()
            except PatchConflictError as conflict:  # wrapped meanwhile: the others go on
                log.warning("patch left in place: %s", conflict)

    def _report(
        self,
        patch: Patch,
        outcome: Outcome,
        detail: str = "",
        error: PatchConflictError | None = None,
    ) -> PatchReport:
        version = self.versions(patch.distribution)
        return PatchReport(
            patch=patch, outcome=outcome, version=version, detail=detail, error=error
        )

    def _tell(self, reports: list[PatchReport]) -> None:
        for report in reports:
            if report.outcome is Outcome.ALREADY:
                continue
            log.debug("patch %s: %s %s", report.patch.id, report.outcome.value, report.detail)
            try:
                self.notify(report)
            except Exception:  # a listener of a third party must not undo a fix
                log.exception("listener for patch %s raised", report.patch.id)
