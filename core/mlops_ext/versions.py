"""Installed versions, and the ranges of versions that a patch or an extension is for."""

from __future__ import annotations

import importlib.metadata

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version


def check_specifier(field: str, text: str) -> SpecifierSet:
    """Return *text* as a specifier set, or raise ValueError that names *field*."""
    try:
        return SpecifierSet(text)
    except InvalidSpecifier as error:
        raise ValueError(f"{field} = {text!r} is not a version specifier: {error}") from error


def installed_version(distribution: str) -> str | None:
    """The installed version of *distribution*, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def in_range(version: str, specifier: str) -> bool:
    """Whether *version* meets *specifier*; text that is not a PEP 440 version meets none."""
    try:
        return SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except InvalidVersion:
        return False
