"""A memory limit by the kernel: cgroup v2 or v1, where this process may make one.

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

__all__ = ["MemoryGroup", "create", "own_limit", "sweep"]

log = logging.getLogger(__name__)

_PREFIX = "mlops-ext-"
_NO_LIMIT = 1 << 60
"""Version 1 writes a number of about 2**63 for "no limit"."""
_SETTLED_S = 60.0
"""A group whose owner we cannot see (another pid namespace) has its process by then."""
_EMPTIES_WITHIN_S = 5.0
"""A killed process leaves its group within milliseconds, unless it is in the middle of I/O."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryGroup:
    """A memory cgroup of our own.

    Attributes:
        path: its directory.
        version: 1 or 2.
    """

    path: Path
    version: int

    @property
    def entrance(self) -> Path:
        """The file a process writes ``0`` to in order to join."""
        return self.path / "cgroup.procs"

    def used(self) -> int:
        """Bytes of anonymous and shared memory in use: what no reclaim can take away."""
        names = ("anon", "shmem") if self.version == 2 else ("total_rss", "total_shmem")  # noqa: PLR2004
        values = _table(self.path / "memory.stat")
        return sum(values.get(name, 0) for name in names)

    def kills(self) -> int:
        """How many processes the kernel has killed here for want of memory."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"  # noqa: PLR2004
        return _table(self.path / name).get("oom_kill", 0)

    def set_limit(self, limit: int) -> None:
        """Limit memory, and swap with it, to *limit* bytes.

        Where the kernel can, it then ends all processes of the group when one must go
        (``memory.oom.group``, version 2), as Kubernetes lets it do since 1.28.

        Raises:
            OSError: the kernel refuses.
        """
        text = f"{limit:d}"  # bytes, also of a Quantity, whose own text the kernel cannot read
        if self.version == 2:  # noqa: PLR2004
            (self.path / "memory.max").write_text(text)
            for name, value in (("memory.swap.max", "0"), ("memory.oom.group", "1")):
                with suppress(OSError):
                    (self.path / name).write_text(value)
            return
        (self.path / "memory.limit_in_bytes").write_text(text)
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


def create(limit: int | None) -> MemoryGroup | None:
    """A new group with *limit* bytes, or without a limit; None where none can be made here."""
    for parent, version in _parents():
        group = MemoryGroup(
            path=parent / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}", version=version
        )
        try:
            group.path.mkdir()
        except OSError as error:
            log.debug("no memory group below %s: %s", parent, error)
            continue
        try:
            if not (group.path / "memory.stat").exists():
                raise OSError("the memory controller is not available below this group")  # noqa: TRY301
            if limit is not None:
                group.set_limit(limit)
        except OSError as error:
            log.debug("no memory limit by %s: %s", group.path, error)
            group.close()
            continue
        return group
    return None


def own_limit() -> int | None:
    """The memory limit this process lives under, of its own group or one above; or None."""
    lowest = None
    for group, version in _own_groups():
        name = "memory.max" if version == 2 else "memory.limit_in_bytes"  # noqa: PLR2004
        for place in (group, *group.parents):
            try:
                text = (place / name).read_text(encoding="ascii").strip()
            except OSError:
                break
            if text != "max" and int(text) < _NO_LIMIT:
                lowest = int(text) if lowest is None else min(lowest, int(text))
    return lowest


def sweep() -> None:
    """Remove empty groups of processes that are gone."""
    for parent, _ in _parents():
        for path in parent.glob(f"{_PREFIX}*-*"):
            owner = path.name.removeprefix(_PREFIX).partition("-")[0]
            if owner.isdigit() and not Path(f"/proc/{owner}").exists() and not _pids(path):
                with suppress(OSError):
                    if time.time() - path.stat().st_mtime > _SETTLED_S:
                        path.rmdir()


def _parents() -> list[tuple[Path, int]]:
    """Where a group may be made, best first."""
    places: list[tuple[Path, int]] = []
    for own, version in _own_groups():
        if version == 1:
            places.append((own, version))
        else:
            # A group with processes of its own gives no controllers to those inside, except
            # the root; beside it that rule does not bind.
            places.extend(
                (place, version)
                for place in (own, own.parent)
                if "memory" in _words(place / "cgroup.subtree_control")
            )
    return places


def _own_groups() -> list[tuple[Path, int]]:
    """This process's memory group in each hierarchy that is mounted, version 2 first."""
    own: dict[str, str] = {}
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = path
    found: list[tuple[Path, int]] = []
    for line in _lines(Path("/proc/self/mountinfo")):
        left, _, right = line.partition(" - ")
        root, point = left.split()[3:5]
        kind, _, options = right.split()[:3]
        if kind == "cgroup2" and "" in own:
            found.append((_below(point, root, own[""]), 2))
        elif kind == "cgroup" and "memory" in options.split(",") and "memory" in own:
            found.append((_below(point, root, own["memory"]), 1))
    return sorted(
        ((path, version) for path, version in found if (path / "cgroup.procs").exists()),
        key=lambda entry: -entry[1],
    )


def _below(point: str, root: str, own: str) -> Path:
    """The directory of group *own* in a mount of the hierarchy's part *root*."""
    relative = own.removeprefix(root) if own.startswith(root) else own
    return Path(point, relative.lstrip("/"))


def _pids(group: Path) -> list[int]:
    return [int(line) for line in _lines(group / "cgroup.procs")]


def _table(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in _lines(path))
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}  # noqa: PLR2004


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
