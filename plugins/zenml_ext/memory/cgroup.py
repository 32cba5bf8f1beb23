"""Memory cgroups, version 1 and 2: read one's own, and limit others where this process may.

What is possible is found by doing it. In version 2 a group can be made beside our own (as systemd
lets users do below their session) or inside it (as root in a container).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

_ROOT = Path("/sys/fs/cgroup")
_PROC = Path("/proc/self")
_PREFIX = "mlops-ext-"
# Version 1 writes "no limit" as the largest multiple of the page size; no machine has an EiB.
_NO_LIMIT = 1 << 60
# A group whose owner we cannot see (another pid namespace) has its process by then.
_SETTLED_S = 60.0
# A killed process leaves its group within milliseconds, unless it is in the middle of I/O.
_EMPTIES_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """What one version of cgroups calls its files, and the entries of ``memory.stat``."""

    limit: str
    usage: str
    events: str
    cache: tuple[str, str]


_NAMES = {
    1: _Names(
        limit="memory.limit_in_bytes",
        usage="memory.usage_in_bytes",
        events="memory.oom_control",
        cache=("total_inactive_file", "total_active_file"),
    ),
    2: _Names(
        limit="memory.max",
        usage="memory.current",
        events="memory.events",
        cache=("inactive_file", "active_file"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryReading:
    """The state of a memory cgroup at one moment; sizes in bytes.

    Attributes:
        limit: None where there is none.
        used: what the kernel cannot take back: usage without page cache.
        oom_kills: how many processes the kernel has killed in it.
    """

    limit: int | None
    used: int
    oom_kills: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCgroup:
    """A memory cgroup.

    Attributes:
        path: its directory.
        version: 1 or 2.
    """

    path: Path
    version: int

    @classmethod
    def own(cls, root: Path = _ROOT, proc: Path = _PROC) -> MemoryCgroup | None:
        """The group of this process, or None where none can be read.

        In a container the hierarchy is usually mounted at its own group, and ``/proc`` may name
        a path outside it: then the mount itself is the group.
        """
        mounted = (cls(path=root / "memory", version=1), cls(path=root, version=2))
        found = (group for group in (*_own_groups(proc), *mounted) if group.read() is not None)
        return next(found, None)

    @property
    def procs_file(self) -> Path:
        """The file a process writes ``0`` to in order to join."""
        return self.path / "cgroup.procs"

    def read(self) -> MemoryReading | None:
        """The state now, or None where it cannot be read (any more)."""
        names = _NAMES[self.version]
        try:
            limit, usage = self.limit(), int(_text(self.path / names.usage))
        except (OSError, ValueError):
            return None
        stat = _table(self.path / "memory.stat")
        return MemoryReading(
            limit=limit,
            used=max(0, usage - sum(stat.get(name, 0) for name in names.cache)),
            oom_kills=self.kills(),
        )

    def kills(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        return _table(self.path / _NAMES[self.version].events).get("oom_kill", 0)

    def cpu_s(self) -> float:
        """Seconds of CPU time that the processes inside have used, but for this one."""
        ticks = 0
        for pid in _pids(self.path):
            fields = "".join(_lines(Path(f"/proc/{pid}/stat"))).rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:13])) if pid != os.getpid() else 0
        return ticks / os.sysconf("SC_CLK_TCK")

    def limit(self) -> int | None:
        """The limit in bytes, or None where there is none.

        Raises:
            OSError: it cannot be read; the root of version 2 has none.
        """
        text = _text(self.path / _NAMES[self.version].limit)
        return None if text == "max" or int(text) >= _NO_LIMIT else int(text)

    def set_limit(self, limit: int) -> None:
        """Limit memory, and swap with it, to *limit* bytes.

        Where the kernel can, it then ends all processes of the group when one must go
        (``memory.oom.group``, version 2), as Kubernetes lets it do since 1.28.

        Raises:
            OSError: the kernel refuses.
        """
        text = f"{limit:d}"  # bytes, also of a Quantity, whose own text the kernel cannot read
        (self.path / _NAMES[self.version].limit).write_text(text)
        if self.version == 2:  # noqa: PLR2004
            for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                with suppress(OSError):
                    (self.path / name).write_text(value)
            return
        with suppress(OSError):  # swap accounting is off in many kernels
            (self.path / "memory.memsw.limit_in_bytes").write_text(text)

    def kill(self) -> None:
        """Kill every process inside."""
        for pid in _pids(self.path):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill what is left inside, and remove the group."""
        deadline = time.monotonic() + _EMPTIES_WITHIN_S
        while True:
            self.kill()
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError as error:
                if time.monotonic() > deadline:
                    log.warning("cgroup %s could not be removed: %s", self.path, error)
                    return
                time.sleep(0.01)
            else:
                return


def create(limit: int | None) -> MemoryCgroup | None:
    """A new group with *limit* bytes, or without a limit; None where none can be made here."""
    for parent in _parents():
        name = f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        group = MemoryCgroup(path=parent.path / name, version=parent.version)
        try:
            group.path.mkdir()
            if not (group.path / "memory.stat").exists():
                raise OSError("the memory controller is not available below this group")  # noqa: TRY301
            if limit is not None:
                group.set_limit(limit)
        except OSError as error:
            log.debug("no memory limit by %s: %s", group.path, error)
            group.close()
        else:
            return group
    return None


def inherited_limit() -> int | None:
    """The memory limit this process lives under, of its own group or one above; or None."""
    limits: list[int] = []
    for group in _own_groups():
        for place in (group.path, *group.path.parents):
            try:
                limit = MemoryCgroup(path=place, version=group.version).limit()
            except OSError:
                break
            limits += [limit] if limit is not None else []
    return min(limits, default=None)


def sweep() -> None:
    """Remove empty groups of processes that are gone."""
    for parent in _parents():
        for path in parent.path.glob(f"{_PREFIX}*-*"):
            owner = path.name.removeprefix(_PREFIX).partition("-")[0]
            if owner.isdigit() and not Path(f"/proc/{owner}").exists() and not _pids(path):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > _SETTLED_S:
                        path.rmdir()


def _parents() -> list[MemoryCgroup]:
    """Where a group may be made, best first."""
    places: list[MemoryCgroup] = []
    for own in _own_groups():
        if own.version == 1:
            places.append(own)
            continue
        # A group with processes of its own gives no controllers to those inside, except the
        # root; beside it that rule does not bind.
        places += [
            MemoryCgroup(path=place, version=2)
            for place in (own.path, own.path.parent)
            if "memory" in " ".join(_lines(place / "cgroup.subtree_control")).split()
        ]
    return places


def _own_groups(proc: Path = _PROC) -> list[MemoryCgroup]:
    """This process's memory group in each hierarchy that is mounted, version 2 first."""
    own: dict[str, str] = {}
    for line in _lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    found: list[MemoryCgroup] = []
    for line in _lines(proc / "mountinfo"):
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind == "cgroup2" and "" in own:
            found.append(MemoryCgroup(path=_below(point, root, own[""]), version=2))
        elif kind == "cgroup" and "memory" in options.split(",") and "memory" in own:
            found.append(MemoryCgroup(path=_below(point, root, own["memory"]), version=1))
    mounted = [group for group in found if group.procs_file.exists()]
    return sorted(mounted, key=lambda group: -group.version)


def _below(point: str, root: str, own: str) -> Path:
    """The directory of group *own* in a mount of the hierarchy's part *root*."""
    relative = own.removeprefix(root) if own.startswith(root) else own
    return Path(point, relative.lstrip("/"))


def _pids(group: Path) -> list[int]:
    return [int(line) for line in _lines(group / "cgroup.procs")]


def _table(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}  # noqa: PLR2004


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
