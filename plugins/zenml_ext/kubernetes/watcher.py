"""Watches the memory of a container from a small process of its own, and lets its limit grow.

A process that is killed for memory cannot tell what it used, and a thread cannot look while C code
holds the interpreter's lock. So a second process reads the cgroup. It keeps a line in the
container's termination message; the kubelet copies that into the pod's status, which costs no
call of any API and needs no rights.
"""

from __future__ import annotations

import json
import logging
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from typing_extensions import Self

from mlops_ext.codec import decode, encode
from mlops_ext.memory import InPlace
from zenml_ext.kubernetes.growth import Growth
from zenml_ext.memory.attempts import CurvePoints, with_point
from zenml_ext.memory.cgroup import MemoryCgroup
from zenml_ext.memory.exits import SIGKILLED, leave

log = logging.getLogger(__name__)

PERIOD_S = 0.2
"""Two small files are read each time; slower and a step that grows 1 GiB/s is 200 MiB further."""
TERMINATION_LOG = Path("/dev/termination-log")
# The report is padded, and written over in one write: a kill cannot leave half of one. The
# kubelet keeps 4096 bytes.
_REPORT_BYTES = 2048
# After a child was killed: a container that uses less CPU time than this in so long waits for a
# result that nobody will bring, as `multiprocessing.Pool` does.
_HUNG_S, _HUNG_CPU_S = 20.0, 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the watcher has seen; sizes in bytes.

    Attributes:
        peak: the most memory in use, page cache aside: what the limit has to hold.
        limit: the limit now; None: none.
        first_limit: the limit at the start.
        oom_kills: how many processes the kernel has killed meanwhile.
        resizes_s: seconds until each wish for more took effect; negative for one that never did.
        curve: (seconds, bytes) points of the memory in use.
    """

    peak: int = 0
    limit: int | None = None
    first_limit: int | None = None
    oom_kills: int = 0
    resizes_s: tuple[float, ...] = ()
    curve: CurvePoints = ()

    def text(self, **more: object) -> bytes:
        """The report as the termination message, with *more*."""
        values = {"mlops-ext": 1, **{k: v for k, v in encode(self).items() if v}, **more}
        return json.dumps(values, separators=(",", ":")).ljust(_REPORT_BYTES).encode()


def write_report(path: Path, text: bytes) -> None:
    """Replace the line at *path*; where the file cannot be written there is none."""
    with suppress(OSError), path.open("r+b", buffering=0) as file:  # in one write, or not at all
        file.write(text)


@dataclass(slots=True, kw_only=True)
class Sampler:
    """Turns readings of a cgroup into a `Report`.

    Attributes:
        cgroup: what is read.
        growth: told of each reading.
        began: the time of the start.
    """

    cgroup: MemoryCgroup
    growth: Growth
    began: float
    report: Report = field(default_factory=Report)
    kills_before: int = 0

    def __post_init__(self) -> None:
        """Note what was there before."""
        if first := self.cgroup.read():
            self.kills_before = first.oom_kills
            self.report = Report(limit=first.limit, first_limit=first.limit)

    def poll(self, now: float) -> bool:
        """Read once at time *now*; whether there is news."""
        reading = self.cgroup.read()
        if reading is None:
            return False
        self.growth.on_reading(reading, now)
        old = self.report
        self.report = replace(
            old,
            peak=max(old.peak, reading.used),
            limit=reading.limit,
            oom_kills=reading.oom_kills - self.kills_before,
            resizes_s=tuple(self.growth.resizes_s),
            curve=with_point(old.curve, now - self.began, reading.used),
        )
        return self.report != old


class Watch:
    """This process's container under watch, inside ``with``.

    Args:
        cgroup: its cgroup.
        rule: how its limit may grow; None: not at all.
        pod: name of its pod, and *container* its name there: what is resized.
        report: where the report goes for the kubelet.
    """

    def __init__(
        self,
        cgroup: MemoryCgroup,
        rule: InPlace | None,
        *,
        pod: str = "",
        container: str = "",
        report: Path = TERMINATION_LOG,
    ) -> None:
        self._cgroup, self._path, self._began = cgroup, report, time.monotonic()
        first = cgroup.read()
        self._kills_before = first.oom_kills if first else 0
        self._task = {
            "group": {"path": str(cgroup.path), "version": cgroup.version},
            "rule": encode(rule) if rule else None,
            "pod": pod,
            "container": container,
            "path": str(report),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._memory = -1

    def __enter__(self) -> Self:
        """Start the process that watches; without one the step runs all the same."""
        try:
            self._memory = os.memfd_create("mlops-ext-report")
            orders, theirs = os.pipe()  # not its output: whoever prints there must end no step
            task = {**self._task, "memory": self._memory, "orders": theirs}
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", __name__, json.dumps(task)],
                    stdin=subprocess.PIPE,
                    pass_fds=(self._memory, theirs),
                    cwd="/",  # no module of the user's may stand in for a standard one
                )
            finally:
                os.close(theirs)
            threading.Thread(target=_obey, args=(orders,), daemon=True).start()
        except OSError as error:
            log.warning("The memory of this process is not watched: %s", error)
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self.stop()

    @property
    def runtime_s(self) -> float:
        """Seconds since this object was made."""
        return time.monotonic() - self._began

    def stop(self) -> None:
        """End the process that watches, after a last look."""
        process, self._process = self._process, None
        if process is None or process.stdin is None:
            return
        try:
            process.stdin.write(b"\n")  # not its end alone: a forked child may hold it open
            process.stdin.close()
            process.wait(timeout=10 * PERIOD_S)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()

    def look(self) -> Report:
        """What has been seen until now."""
        seen = Report()
        if self._memory >= 0 and (text := os.pread(self._memory, _REPORT_BYTES, 0)):
            values = json.loads(text)
            values.pop("mlops-ext", None)
            seen = decode(Report, values)
        if now := self._cgroup.read():
            kills = now.oom_kills - self._kills_before
            seen = replace(seen, peak=max(seen.peak, now.used), limit=now.limit, oom_kills=kills)
        return seen

    def close(self, **more: object) -> None:
        """End, and leave *more* in the report."""
        self.stop()
        write_report(self._path, self.look().text(**more))


def _obey(orders: int) -> None:
    """End this process if the one that watches says so: no signal from within kills a pid 1."""
    if os.read(orders, 1):
        leave(SIGKILLED)
    os.close(orders)


def main(task: Mapping[str, Any]) -> None:
    """Watch until standard input says that it is over."""
    from zenml_ext.kubernetes.resize import PodResizer

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cgroup = decode(MemoryCgroup, task["group"])
    rule = decode(InPlace, task["rule"]) if task["rule"] else None
    resizer = PodResizer.own(task["pod"], task["container"]) if rule else None
    growth = Growth(rule=rule, resizer=resizer)
    sampler = Sampler(cgroup=cgroup, growth=growth, began=time.monotonic())
    path, hung = Path(task["path"]), Hung()
    is_over = False
    while not is_over:
        is_over = bool(select.select([sys.stdin], [], [], PERIOD_S)[0])
        if sampler.poll(time.monotonic()):
            text = sampler.report.text()
            os.pwrite(task["memory"], text, 0)
            write_report(path, text)
        if sampler.report.oom_kills and hung.is_so(cgroup, time.monotonic()):
            log.error(
                "A process of this step was killed for memory, and the others wait for it: the"
                " step ends, to run again with more."
            )
            os.write(task["orders"], b"!")
            return


@dataclass(slots=True)
class Hung:
    """Detects a container whose processes no longer make progress."""

    _since: float | None = None
    _cpu_s: float = 0.0

    def is_so(self, cgroup: MemoryCgroup, now: float) -> bool:
        """Whether its processes have hardly used the CPU since `_HUNG_S` seconds."""
        used = cgroup.cpu_s()
        if self._since is None or used - self._cpu_s > _HUNG_CPU_S:
            self._since, self._cpu_s = now, used
        return now - self._since >= _HUNG_S


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
