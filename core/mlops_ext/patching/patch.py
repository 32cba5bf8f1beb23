"""A patch: what it changes, for which versions, why, and which test proves it."""

from __future__ import annotations

import enum
import importlib
import sys
from dataclasses import dataclass
from inspect import getattr_static
from typing import Any

from mlops_ext.errors import PatchConflictError
from mlops_ext.patching.target import (
    MISSING,
    Slot,
    describe,
    home_of,
    parse_target,
    resolve,
)
from mlops_ext.versions import check_specifier


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A change to a framework, as data.

    Attributes:
        id: dotted name that starts with the framework's ("kserve.signal-handler").
        framework: name of the framework it belongs to; it is activated by this name.
        distribution: the distribution whose version decides.
        versions: specifier of the versions it can be applied to.
        needed: specifier of the versions that have the fault; "" means all of *versions*.
        target: ``module:Class.attribute``, or ``module:MAPPING[key]`` for an item.
        replacement: ``module:factory``; the factory gets the raw original (or `MISSING`) and
            returns what takes its place. Named by text, so that listing imports nothing.
        expects: what must stand at the target: "" for an object defined in the target's own
            top-level package, "nothing" for an empty place, or the name of a top-level package.
        process: the kind of process that applies it to itself ("the pod of a step"); "" means
            any process in which the framework is activated.
        reason: what hurts without it, in one sentence.
        upstream: link to the fault upstream, or "".
        verified_by: the test that fails without it and passes with it.
    """

    id: str
    framework: str
    distribution: str
    versions: str
    needed: str = ""
    target: str
    replacement: str
    expects: str = ""
    process: str = ""
    reason: str
    upstream: str = ""
    verified_by: str

    @property
    def module(self) -> str:
        """The module that *target* is in."""
        return self.target.partition(":")[0]

    def conflict(self, expected: str, found: str) -> PatchConflictError:
        """The error that *found* stands at the target in place of *expected*."""
        return PatchConflictError(self.id, self.target, expected, found)

    def __post_init__(self) -> None:
        """Refuse what cannot be read, with the field's name."""
        parse_target(self.target)
        if ":" not in self.replacement:
            raise ValueError(f"Patch.replacement = {self.replacement!r}: expected module:factory")
        check_specifier("Patch.versions", self.versions)
        check_specifier("Patch.needed", self.needed)


class Outcome(enum.Enum):
    """What became of a patch."""

    APPLIED = "applied"
    ALREADY = "already applied"
    REVERTED = "reverted"
    KEPT = "kept for another user"
    NOT_APPLIED = "not applied"
    NOT_INSTALLED = "framework not installed"
    NOT_NEEDED = "not needed by this version"
    OUT_OF_RANGE = "version out of range"
    DISABLED = "switched off by MLOPS_EXT_DISABLE"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchReport:
    """What became of a patch, and why.

    Attributes:
        patch: the patch.
        outcome: what became of it.
        version: installed version of its distribution, or None.
        detail: one sentence, or "".
        error: the conflict, if there is one.
    """

    patch: Patch
    outcome: Outcome
    version: str | None
    detail: str = ""
    error: PatchConflictError | None = None


@dataclass(slots=True, kw_only=True)
class AppliedPatch:
    """A patch in force: what it replaced, and where.

    Attributes:
        patch: the patch.
        slot: the place.
        original: what stood in that very place, or MISSING.
        below: what a look-up found there, inherited or not, or MISSING.
        replacement: what stands there now.
        users: the patch sets that count on it; the last one that reverts it puts *original* back.
    """

    patch: Patch
    slot: Slot
    original: Any
    below: Any
    replacement: Any
    users: int = 1

    @property
    def in_force(self) -> bool:
        """Whether the replacement still stands in its place."""
        return self.slot.own() is self.replacement

    def put(self) -> bool:
        """Put the replacement in its place; False if the place has changed since `prepare`.

        Raises:
            PatchConflictError: the place cannot be set.
        """
        if self.slot.own() is not self.original or self.slot.effective() is not self.below:
            return False
        try:
            self.slot.put(self.replacement)
        except (AttributeError, TypeError) as error:
            found = f"read-only ({error})"
            raise self.patch.conflict("something that can be replaced", found) from error
        return True

    def revert(self) -> None:
        """Put the original back; a no-op if that has been done already.

        Raises:
            PatchConflictError: our object was wrapped or replaced since; the new one is kept.
        """
        if self.slot.own() is self.original:
            return
        if not self.in_force:
            raise self.patch.conflict(describe(self.replacement), describe(self.slot.own()))
        self.slot.put(self.original)


def prepare(patch: Patch, slot: Slot) -> AppliedPatch:
    """What `AppliedPatch.put` will put into *slot*; imports the factory and runs it.

    Raises:
        PatchConflictError: what stands there is not what the patch expects.
    """
    below = slot.effective()
    conflict = check(patch, below)
    if conflict is not None:
        raise conflict
    factory_module, _, factory = patch.replacement.partition(":")
    make = getattr(importlib.import_module(factory_module), factory)
    original = slot.own()
    return AppliedPatch(
        patch=patch, slot=slot, original=original, below=below, replacement=make(below)
    )


def check(patch: Patch, found: Any) -> PatchConflictError | None:
    """The conflict if *found*, which stands at the target, is not what *patch* expects."""
    expected = _expected(patch)
    home = "nothing" if found is MISSING else home_of(found).partition(".")[0]
    if home == expected:
        return None
    return patch.conflict(f"an object of {expected}", describe(found))


def find_slot(patch: Patch) -> Slot:
    """The place that *patch* changes; imports the framework's module.

    Raises:
        PatchConflictError: the place does not exist.
    """
    try:
        return resolve(patch.target)
    except (ImportError, AttributeError) as error:
        found = f"not found ({type(error).__name__}: {error})"
        raise patch.conflict(_expected(patch), found) from error


def _expected(patch: Patch) -> str:
    """The top-level package that must have defined what stands at the target."""
    return patch.expects or patch.module.partition(".")[0]


def loaded_slot(patch: Patch) -> Slot | None:
    """The place that *patch* changes, if its module is loaded; imports and runs nothing."""
    try:
        return resolve(patch.target, import_module=sys.modules.__getitem__, get=getattr_static)
    except (KeyError, AttributeError):
        return None
