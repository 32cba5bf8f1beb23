"""A command in a process group of its own, under a memory limit: by the kernel, or by watching."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias

from mlops_ext.memory import Quantity
from zenml_ext.local.warm import WarmProcess, WarmServer
from zenml_ext.memory.attempts import CurvePoints, with_point
from zenml_ext.memory.cgroup import MemoryCgroup, create, inherited_limit

GROUP = "MLOPS_EXT_MEMORY_GROUP"
"""Variable with the version and the path of the command's cgroup: ``1:/sys/fs/cgroup/…``."""

PARENT_PIPE = "MLOPS_EXT_PARENT_PIPE"
"""Variable with the descriptor of a pipe that ends when the orchestrator does, however it does."""

_CHILD = Path(__file__).with_name("child.py")
# How often usage and kills are read where the kernel enforces the limit: the peak depends on it,
# and on cgroup v1 how long a command lives on with one of its processes killed.
_KERNEL_PERIOD_S = 0.1
# How often usage is read where we enforce it: at 1 GB/s a step overshoots by 50 MB.
_WATCH_PERIOD_S = 0.05


Process: TypeAlias = "subprocess.Popen[bytes] | WarmProcess"


@dataclass(frozen=True, slots=True, kw_only=True)
class Termination:
    """How a command ended.

    Attributes:
        exit_code: as a shell counts: 128 plus the signal for one that was killed.
        oom_killed: something in it was killed for memory. Then all of it was, unless it came to
            its end before that was seen: the exit code is its own in that case, and may be 0.
        peak: the most memory it was seen to use, page cache aside; None where nobody looked.
        runtime_s: how long it ran.
        stopped: it was ended because *stopping* said so.
        curve: (seconds, bytes) points of its memory.
    """

    exit_code: int
    oom_killed: bool
    peak: Quantity | None
    runtime_s: float
    stopped: bool
    curve: CurvePoints = ()


def run(  # noqa: PLR0913 - all that a process is started with
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    limit: int | None,
    stopping: threading.Event,
    grace_s: float,
    output: IO[bytes] | None = None,
    kernel: bool = True,
    warm: WarmServer | None = None,
) -> Termination:
    """Run *command* under *limit* bytes until it ends, or until *stopping* is set.

    Args:
        command: program and arguments; the program as an absolute path.
        environment: its whole environment.
        limit: bytes of memory for all its processes together; None for no limit.
        stopping: when set, the command gets SIGTERM, and SIGKILL after *grace_s*.
        grace_s: seconds between the two.
        output: where its output goes; None: to ours.
        kernel: let the kernel enforce the limit where it can.
        warm: runs ZenML's entrypoint, whose arguments end *command*, without importing it anew.
    """
    group = create(limit) if kernel else None
    try:
        with _started(command, environment, output, group, warm) as process:
            step = _MemoryMonitor(process=process, group=group, limit=limit)
            step.until_end(stopping, grace_s)
            return step.termination(stopped=stopping.is_set())
    finally:
        if group is not None:
            group.close()


def total_memory() -> Quantity:
    """Memory that steps can share: the machine's, or the limit this process lives under."""
    import psutil

    total = psutil.virtual_memory().total
    return Quantity(min(total, inherited_limit() or total))


@contextlib.contextmanager
def _started(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: IO[bytes] | None,
    group: MemoryCgroup | None,
    warm: WarmServer | None,
) -> Iterator[Process]:
    """The running command; it is killed where this process leaves it early."""
    posix = os.name == "posix"
    parent_pipe, ours = os.pipe() if posix else (-1, -1)
    environment = {**environment, PARENT_PIPE: str(parent_pipe)} if posix else environment
    if group:
        environment = {**environment, GROUP: f"{group.version}:{group.path}"}
    procs_file = str(group.procs_file) if group else ""
    try:
        channels = (output, parent_pipe, procs_file)
        started = warm.start(command, environment, *channels) if warm else None
        process: Process = started or _cold(command, environment, *channels)
    except BaseException:
        if posix:
            os.close(ours)
        raise
    finally:
        if posix:
            os.close(parent_pipe)
    try:
        yield process
    finally:
        if process.poll() is None:
            _kill_tree(process)
            process.wait()
        if posix:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)  # what it left behind
            os.close(ours)


def _cold(
    command: Sequence[str],
    environment: Mapping[str, str],
    output: IO[bytes] | None,
    parent_pipe: int,
    procs_file: str,
) -> subprocess.Popen[bytes]:
    """A process of its own from the first."""
    posix = os.name == "posix"
    join = [sys.executable, "-I", "-S", str(_CHILD), procs_file] if posix else []
    return subprocess.Popen(
        [*join, *command],
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT if output else None,
        start_new_session=posix,
        pass_fds=(parent_pipe,) if posix else (),
    )


@dataclass(slots=True, kw_only=True)
class _MemoryMonitor:
    """Reads the memory of a running command until it ends."""

    process: Process
    group: MemoryCgroup | None
    limit: int | None
    began: float = field(default_factory=time.monotonic)
    peak: int = 0
    killed: bool = False
    curve: CurvePoints = ()

    def until_end(self, stopping: threading.Event, grace_s: float) -> None:
        period = _KERNEL_PERIOD_S if self.group else _WATCH_PERIOD_S
        deadline: float | None = None
        while self.process.poll() is None:
            self._poll()
            if stopping.is_set() and deadline is None:
                deadline = time.monotonic() + grace_s
                self.process.terminate()
            if deadline is not None and time.monotonic() > deadline:
                _kill_tree(self.process)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(period)

    def termination(self, *, stopped: bool) -> Termination:
        code = self.process.wait()
        kills = self.group.kills() if self.group else 0
        if kills and code and self.limit:
            self.peak = max(self.peak, self.limit)
        return Termination(
            exit_code=128 - code if code < 0 else code,
            oom_killed=self.killed or kills > 0,
            peak=Quantity(self.peak) if self.peak else None,
            runtime_s=time.monotonic() - self.began,
            stopped=stopped and code != 0,
            curve=self.curve,
        )

    def _poll(self) -> None:
        if self.group and not self.killed and self.group.kills():
            # Version 1 takes one process, and what waits for it may wait forever.
            self.killed = True
        if self.group and self.killed:
            self.group.kill()  # each time we look: it may have been forking
        reading = self.group.read() if self.group else None
        used = max(reading.used, _mapped_memory(self.process.pid)) if reading else 0
        if not self.group:
            used = _tree_memory(self.process.pid, _resident)
        if not self.group and self.limit and used > self.limit:
            # Pages that processes share were counted once for each: count again, exactly.
            used = _tree_memory(self.process.pid, _proportional)
            if used > self.limit:
                self.killed = True
                _kill_tree(self.process)
        self.peak = max(self.peak, used)
        self.curve = with_point(self.curve, time.monotonic() - self.began, used)


def _mapped_memory(pid: int) -> int:
    """Bytes of one process, with what it shares with the one it was forked from; 0 if it is gone.

    A cgroup counts memory once, where it was first used: an import before the fork stands in no
    step's, and a step that starts cold needs it all the same.
    """
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
        pairs = (line.partition(":") for line in lines.splitlines())
        found = {name: value for name, _, value in pairs}
        return sum(int(found.get(name, "0").split()[0]) << 10 for name in ("RssAnon", "RssShmem"))
    return 0


def _tree_memory(pid: int, measure: Callable[[Any], int]) -> int:
    """Bytes that process *pid* and its descendants use, by *measure*."""
    import psutil

    total = 0
    with contextlib.suppress(psutil.Error):
        root = psutil.Process(pid)
        for process in (root, *root.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                total += measure(process)
    return total


def _resident(process: Any) -> int:
    memory = process.memory_info()
    return int(memory.rss) - int(getattr(memory, "shared", 0)) if memory else 0


def _proportional(process: Any) -> int:
    memory = process.memory_full_info()
    return int(getattr(memory, "pss", 0) or memory.uss)


def _kill_tree(process: Process) -> None:
    import psutil

    doomed: list[Any] = []
    with contextlib.suppress(psutil.Error):
        doomed = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in doomed:
        with contextlib.suppress(psutil.Error):
            child.kill()
