"""What ``mlops-ext doctor`` checks for joblib."""

from __future__ import annotations

from collections.abc import Iterator

from mlops_ext.hookspecs import Finding, Severity


def check_checksum() -> Iterator[Finding]:
    """Whether xxhash is installed: without it entries are checked with crc32."""
    from importlib.util import find_spec

    name = "joblib.checksum"
    if find_spec("xxhash") is not None:
        yield Finding(check=name, severity=Severity.OK, message="entries are checked with xxh3")
        return
    yield Finding(
        check=name,
        severity=Severity.NOTE,
        message="xxhash is not installed: entries are checked with crc32, which is slower,"
        " and entries that others wrote with xxh3 count as misses",
        advice="pip install 'mlops-ext[joblib]'",
    )
