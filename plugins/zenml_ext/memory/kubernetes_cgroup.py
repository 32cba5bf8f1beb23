"""A container's own memory cgroup, version 1 or 2: how much it may use, uses, and lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["MemoryCgroup", "MemoryReading"]

_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60
"""Version 1 writes "no limit" as the largest multiple of the page size; no machine has an EiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """One look at a memory cgroup; sizes in bytes.

    Attributes:
        limit: None where there is none.
        used: what the kernel cannot take back: usage without page cache.
        resident: anonymous and shared memory, what a process would call its own.
        oom_kills: how many processes the kernel has killed in it.
    """

    limit: int | None
    used: int
    resident: int
    oom_kills: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCgroup:
    """Where a memory cgroup's files are.

    Attributes:
        path: its directory.
        version: 1 or 2.
    """

    path: Path
    version: int

    @classmethod
    def own(cls, root: Path = _ROOT, proc: Path = Path("/proc/self/cgroup")) -> MemoryCgroup | None:
        """The cgroup of this process, or None where none can be read.

        In a container the hierarchy is usually mounted at its own cgroup, and /proc names a path
        outside it; on a machine without containers that path is there.
        """
        is_v1 = (root / "memory" / "memory.limit_in_bytes").exists()
        base = root / "memory" if is_v1 else root
        try:
            lines = [line.split(":", 2) for line in proc.read_text().splitlines()]
        except OSError:
            lines = []
        named = [
            path
            for _, names, path in lines
            if ("memory" in names.split(",") if is_v1 else not names)
        ]
        places = [base / path.lstrip("/") for path in named] + [base]
        for place in places:
            probe = place / ("memory.limit_in_bytes" if is_v1 else "memory.current")
            if probe.exists():
                return cls(path=place, version=1 if is_v1 else 2)
        return None

    def read(self) -> MemoryReading | None:
        """The state now, or None where it cannot be read (any more)."""
        try:
            return self._read_v1() if self.version == 1 else self._read_v2()
        except (OSError, ValueError):
            return None

    def _read_v1(self) -> MemoryReading:
        stat = self._table("memory.stat")
        limit = int(self._text("memory.limit_in_bytes"))
        usage = int(self._text("memory.usage_in_bytes"))
        cache = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
        return MemoryReading(
            limit=limit if limit < _UNLIMITED else None,
            used=max(0, usage - cache),
            resident=stat.get("total_rss", 0) + stat.get("total_shmem", 0),
            oom_kills=self._table("memory.oom_control").get("oom_kill", 0),
        )

    def _read_v2(self) -> MemoryReading:
        stat = self._table("memory.stat")
        limit = self._text("memory.max")
        usage = int(self._text("memory.current"))
        return MemoryReading(
            limit=None if limit == "max" else int(limit),
            used=max(0, usage - stat.get("inactive_file", 0) - stat.get("active_file", 0)),
            resident=stat.get("anon", 0) + stat.get("shmem", 0),
            oom_kills=self._table("memory.events").get("oom_kill", 0),
        )

    def _text(self, name: str) -> str:
        return (self.path / name).read_text().strip()

    def _table(self, name: str) -> dict[str, int]:
        return {
            key: int(value)
            for key, _, value in (line.partition(" ") for line in self._text(name).splitlines())
        }
