"""Memory cgroups of both versions, made and removed by the double's nodes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
import uuid
from pathlib import Path

V1 = Path("/sys/fs/cgroup/memory")
V2 = Path("/sys/fs/cgroup")
UNSHARE = ("unshare", "--mount", "--uts", "--propagation", "private")


class Cgroup:
    """A memory cgroup of either version; `parent` makes it a child."""

    def __init__(self, name: str, parent: Cgroup | None = None) -> None:
        self.is_v1 = V1.joinpath("memory.limit_in_bytes").exists()
        base = parent.path if parent else (V1 if self.is_v1 else V2)
        self.path = base / name
        self.path.mkdir()
        if not self.is_v1 and parent is None:
            (self.path / "cgroup.subtree_control").write_text("+memory")

    @staticmethod
    def usable() -> bool:
        """Whether memory cgroups and namespaces can be made here."""
        if os.geteuid() != 0 or shutil.which("unshare") is None:
            return False
        try:
            probe = Cgroup(f"probe-{uuid.uuid4().hex[:8]}")
            probe.limit(64 << 20)
            probe.remove()
        except OSError:
            return False
        return subprocess.run([*UNSHARE, "true"], check=False, capture_output=True).returncode == 0

    def limit(self, size: float) -> None:
        name = "memory.limit_in_bytes" if self.is_v1 else "memory.max"
        (self.path / name).write_text(str(int(size)))

    def kills(self) -> int:
        name = "memory.oom_control" if self.is_v1 else "memory.events"
        for line in (self.path / name).read_text().splitlines():
            key, value = line.split()
            if key == "oom_kill":
                return int(value)
        return 0

    def pids(self) -> list[int]:
        try:
            return [int(pid) for pid in (self.path / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def kill(self) -> None:
        for _ in range(100):
            pids = self.pids()
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.02)

    def remove(self) -> None:
        for _ in range(50):
            try:
                self.path.rmdir()
            except OSError:
                time.sleep(0.02)
            else:
                return
