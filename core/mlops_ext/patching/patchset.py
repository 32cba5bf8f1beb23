"""Patches that are applied and reverted together.

Applying twice is a no-op. Reverting restores the original exactly, once the last user of a patch
reverts it. A target that is not what the patch was written against is a conflict: nothing is
changed, nothing is guessed.

Threads apply and revert at any time, often inside an import statement. So no lock of ours is held
while anything is imported or while code runs that is not ours: a thread claims the place that it
changes, and the lock guards only the tables of claims and of applied patches.
"""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from typing_extensions import Self

from mlops_ext import settings
from mlops_ext.errors import PatchConflictError, SettingsError
from mlops_ext.patching.patch import (
    AppliedPatch,
    Outcome,
    Patch,
    PatchReport,
    check,
    find_slot,
    loaded_slot,
    prepare,
)
from mlops_ext.patching.target import MISSING, Slot, describe
from mlops_ext.processes.forks import in_forked_child
from mlops_ext.versions import in_range, installed_version

log = logging.getLogger(__name__)

# A claim is held for one assignment; one that is held longer hangs in code of a metaclass.
_LONGEST_CHANGE_S = 5.0

_applied: dict[tuple[str, Slot], AppliedPatch] = {}
_claims: dict[Slot, threading.Event] = {}
_lock = threading.Lock()


@in_forked_child
def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _claims.clear()


@contextmanager
def _claimed(slot: Slot) -> Iterator[None]:
    """Claim *slot* for one change by this thread; no lock is held in the block."""
    mine = threading.Event()
    while True:
        with _lock:
            other = _claims.setdefault(slot, mine)
        if other is mine:
            break
        if not other.wait(_LONGEST_CHANGE_S):
            with _lock:
                _claims[slot] = mine
            break
    try:
        yield
    finally:
        with _lock:
            if _claims.get(slot) is mine:
                del _claims[slot]
        mine.set()


def _disabled() -> tuple[str, ...]:
    """The names that MLOPS_EXT_DISABLE lists; none if the settings cannot be read."""
    try:
        return settings.load(settings.CoreSettings).disable
    except SettingsError:
        return ()


@dataclass(slots=True)
class PatchSet:
    """Patches that are applied and reverted together: all, or none.

    Use it as a context manager to revert at the end what it applied.

    Attributes:
        patches: the patches, applied in this order, reverted in the opposite one; each id once.
        notify: called with each report of something new; what it raises is logged.
        versions: gives the installed version of a distribution, or None.
    """

    patches: Iterable[Patch]
    notify: Callable[[PatchReport], object] = lambda _: None
    versions: Callable[[str], str | None] = installed_version
    _mine: list[AppliedPatch] = field(default_factory=list)
    _off: tuple[str, ...] = field(default_factory=_disabled)

    def __post_init__(self) -> None:
        self.patches = tuple(self.patches)
        counted = collections.Counter(patch.id for patch in self.patches)
        twice = [name for name, number in counted.items() if number > 1]
        if twice:
            raise ValueError(f"several patches have the id {', '.join(twice)}: ids must be unique")

    def status(self) -> list[PatchReport]:
        """The state of each patch now; imports and changes nothing."""
        return [self._status(patch) for patch in self.patches]

    def apply(self) -> list[PatchReport]:
        """Apply every patch that the installed versions need.

        Raises:
            PatchConflictError: one could not be applied; those applied before it in this call
                were reverted.
        """
        reports: list[PatchReport] = []
        mine: list[AppliedPatch] = []
        for patch in self.patches:
            try:
                reports.append(self._skip(patch) or self._apply(patch, mine))
            except BaseException as error:
                self._undo(mine)
                if isinstance(error, PatchConflictError):
                    self._tell([self._report(patch, Outcome.CONFLICT, error)])
                raise
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
        for applied in reversed(self._mine):
            try:
                reports.append(self._report(applied.patch, _release(applied)))
            except PatchConflictError as error:
                kept.insert(0, applied)
                reports.append(self._report(applied.patch, Outcome.CONFLICT, error))
        self._mine = kept
        self._tell(reports)
        for report in reports:
            if report.error is not None:
                raise report.error
        return reports

    def __enter__(self) -> Self:
        self.apply()
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self.revert()
        except PatchConflictError as conflict:
            if error is None:
                raise
            log.warning("patch left in place: %s", conflict)

    def _status(self, patch: Patch) -> PatchReport:
        slot = loaded_slot(patch)
        applied = _applied.get((patch.id, slot)) if slot is not None else None
        if applied is not None:
            return self._status_of(applied)
        skipped = self._skip(patch)
        conflict = None if skipped or slot is None else check(patch, slot.effective())
        if conflict is not None:
            return self._report(patch, Outcome.CONFLICT, conflict)
        return skipped or self._report(patch, Outcome.NOT_APPLIED)

    def _status_of(self, applied: AppliedPatch) -> PatchReport:
        patch, found = applied.patch, applied.slot.own()
        if found is applied.replacement:
            return self._report(patch, Outcome.APPLIED)
        if found is applied.original:
            return self._report(patch, Outcome.NOT_APPLIED, "undone by other code since")
        if _leads_to(found, applied.replacement):
            detail = f"applied, and wrapped since by {describe(found)}"
            return self._report(patch, Outcome.APPLIED, detail)
        detail = f"applied, then wrapped or replaced by {describe(found)}"
        return self._report(patch, Outcome.CONFLICT, detail)

    def _skip(self, patch: Patch) -> PatchReport | None:
        """Why the installed version gets no patch, or None if it gets one."""
        version = self.versions(patch.distribution)
        if version is None:
            return self._report(patch, Outcome.NOT_INSTALLED)
        if not in_range(version, patch.versions):
            detail = f"written for {patch.distribution} {patch.versions}"
            return self._report(patch, Outcome.OUT_OF_RANGE, detail)
        if not in_range(version, patch.needed):
            detail = f"only {patch.distribution} {patch.needed} has the fault"
            return self._report(patch, Outcome.NOT_NEEDED, detail)
        return self._report(patch, Outcome.DISABLED) if patch.id in self._off else None

    def _apply(self, patch: Patch, mine: list[AppliedPatch]) -> PatchReport:
        while True:
            slot = find_slot(patch)  # importing the framework may fire a hook that applies this
            if self._join(patch, slot, mine):
                return self._report(patch, Outcome.ALREADY)
            try:
                applied = prepare(patch, slot)
            except PatchConflictError:
                if self._join(patch, slot, mine):  # another thread has applied it meanwhile
                    return self._report(patch, Outcome.ALREADY)
                raise
            with _claimed(slot):
                if applied.put():
                    with _lock:
                        _applied[patch.id, slot] = applied
                    mine.append(applied)
                    return self._report(patch, Outcome.APPLIED)

    def _join(self, patch: Patch, slot: Slot, mine: list[AppliedPatch]) -> bool:
        """Become a user of the patch if it is in force there; waits for a change under way."""
        with _claimed(slot):
            applied = _applied.get((patch.id, slot))
            if applied is None or not applied.in_force:
                return False
            if all(applied is not other for other in (*self._mine, *mine)):
                applied.users += 1
                mine.append(applied)
            return True

    def _undo(self, mine: list[AppliedPatch]) -> None:
        for applied in reversed(mine):
            try:
                _release(applied)
            except PatchConflictError as conflict:  # wrapped meanwhile: the others go on
                log.warning("patch left in place: %s", conflict)

    def _report(self, patch: Patch, outcome: Outcome, detail: object = "") -> PatchReport:
        return PatchReport(
            patch=patch,
            outcome=outcome,
            version=self.versions(patch.distribution),
            detail=str(detail),
            error=detail if isinstance(detail, PatchConflictError) else None,
        )

    def _tell(self, reports: list[PatchReport]) -> None:
        for report in reports:
            if report.outcome is Outcome.ALREADY:
                continue
            log.debug("patch %s: %s %s", report.patch.id, report.outcome.value, report.detail)
            try:
                self.notify(report)
            except KeyboardInterrupt:
                raise
            except BaseException:  # a listener of a third party must not undo a fix
                log.exception("listener for patch %s raised", report.patch.id)


def _release(applied: AppliedPatch) -> Outcome:
    """Drop one user of *applied*; the last one puts the original back.

    Raises:
        PatchConflictError: it cannot be put back; the user still counts.
    """
    with _claimed(applied.slot):
        if applied.users > 1:
            applied.users -= 1
            return Outcome.KEPT
        applied.revert()
        key = applied.patch.id, applied.slot
        with _lock:
            if _applied.get(key) is applied:
                del _applied[key]
        return Outcome.REVERTED


def _leads_to(found: object, replacement: object) -> bool:
    """Whether the chain of ``__wrapped__`` that functools.wraps makes leads to *replacement*."""
    for _ in range(_LONGEST_CHAIN):
        if found is replacement:
            return True
        found = getattr(found, "__func__", found)
        found = getattr(found, "__dict__", {}).get("__wrapped__", MISSING)
        if found is MISSING:
            return False
    return False


# Wrappers around one function; more, and they go in a circle.
_LONGEST_CHAIN = 100
