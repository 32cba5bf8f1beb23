"""Samples the memory of this process's container, raises its limit in time, leaves a report.

A process that is killed for memory cannot tell what it used. So the monitor keeps a line in the
container's termination message while the step runs; the kubelet copies it into the pod's status,
which costs no call of any API and needs no rights.
"""

from __future__ import annotations

import enum
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from mlops_ext.codec import decode
from mlops_ext.memory import InPlace, Quantity
from zenml_ext.memory.cgroup import MemoryReading

log = logging.getLogger(__name__)

PERIOD_S = 0.2
"""Two small files are read each time; slower and a step that grows 1 GiB/s is 200 MiB further."""
LEAD_S = 3.0
"""A resize takes effect within 2 s on the cluster it was measured on; what a step will use by
then, at its pace of the last moments, decides."""
FORESIGHT = 1.6
"""A pace is a guess: it counts up to this many times the present limit."""
_MIB = 1 << 20
PATIENCE_S = 10.0
"""How long an agreed resize may take before it is asked for again."""
_REPORT_BYTES = 256
"""The report is padded, and written over in one write: a kill cannot leave half of one."""
TERMINATION_LOG = Path("/dev/termination-log")


def whole_mebibytes(size: int) -> Quantity:
    """*size*, rounded up: the kernel rounds limits down to pages, and people read Mi."""
    return Quantity(-(-size // _MIB) * _MIB)


class Refusal(enum.Enum):
    """Why a resize did not happen."""

    FOR_GOOD = "refused for good"
    TOO_MUCH = "more than there is"
    FOR_NOW = "not now"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResizeAnswer:
    """What the API server said.

    Attributes:
        refusal: None if it agreed; the kubelet then does it within seconds, or never.
        message: its words.
    """

    refusal: Refusal | None
    message: str = ""


class Resizer(Protocol):
    """What asks for a new limit."""

    def resize(self, limit: Quantity) -> ResizeAnswer:
        """Ask for *limit*; never raises."""
        ...


class Cgroup(Protocol):
    """What is watched."""

    def read(self) -> MemoryReading | None:
        """The state now."""
        ...


def load_in_place(text: str | None) -> InPlace | None:
    """How to grow, from the environment of the step; None: not at all."""
    return decode(InPlace, json.loads(text)) if text else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TerminationReport:
    """The line in the termination message.

    Attributes:
        path: the container's terminationMessagePath.
    """

    path: Path = TERMINATION_LOG

    def write(self, values: Mapping[str, Any]) -> None:
        """Replace the line; where the file cannot be written there is none."""
        text = json.dumps({"mlops-ext": 1, **values}, separators=(",", ":"))
        try:
            handle = os.open(self.path, os.O_WRONLY)
            try:
                os.pwrite(handle, text.ljust(_REPORT_BYTES).encode(), 0)
            finally:
                os.close(handle)
        except OSError:
            log.debug("no report at %s", self.path, exc_info=True)


@dataclass(slots=True, kw_only=True)
class Growth:
    """Decides when to ask for more, and remembers what came of it. Pure but for the resizer.

    Attributes:
        rule: when and by how much to grow; None: never.
        resizer: None where this process cannot ask.
        grown: the limits that took effect, in order.
        stopped: why it asks no more, or "".
    """

    rule: InPlace | None
    resizer: Resizer | None
    grown: list[Quantity] = field(default_factory=list)
    stopped: str = ""
    _asked: Quantity | None = None
    _asked_at: float = 0.0
    _last: tuple[float, int] | None = None
    _rate: float = 0.0
    _quiet_until: float = 0.0

    def on_reading(self, reading: MemoryReading, now: float) -> None:
        """Take note of *reading* at time *now*; ask for a larger limit where it is due."""
        self._follow(reading.used, now)
        limit = Quantity(reading.limit) if reading.limit else None
        if self._asked is not None and limit is not None and limit >= self._asked:
            log.info("The memory limit is %s now.", limit.human)
            self.grown.append(limit)
            self._asked = None
        if not self.rule or not self.resizer or self.stopped or limit is None:
            return
        if now < self._quiet_until or (self._asked and now < self._asked_at + PATIENCE_S):
            return
        ahead = reading.used + round(max(0.0, self._rate) * LEAD_S)
        expected = max(reading.used, min(ahead, round(FORESIGHT * limit)))
        wanted = self.rule.next_limit(limit, expected)
        if wanted is not None and wanted > limit:
            self._ask(limit, whole_mebibytes(wanted - 1), reading.used, now)

    def _follow(self, used: int, now: float) -> None:
        """The pace of growth: quick to rise, slow to forget."""
        if self._last is not None and now > self._last[0]:
            pace = (used - self._last[1]) / (now - self._last[0])
            self._rate = max(pace, 0.7 * self._rate + 0.3 * pace)
        self._last = (now, used)

    def _ask(self, limit: Quantity, wanted: Quantity, used: int, now: float) -> None:
        assert self.resizer is not None
        answer = self.resizer.resize(wanted)
        if answer.refusal is None:
            log.info(
                "%s of %s are in use: asked for %s in place.",
                Quantity(used).human,
                limit.human,
                wanted.human,
            )
            self._asked, self._asked_at = wanted, now
        elif answer.refusal is Refusal.FOR_GOOD:
            self.stopped = answer.message
            log.warning(
                "This pod cannot be resized while it runs (%s); if it is killed for memory it"
                " runs again with more.",
                answer.message,
            )
        elif answer.refusal is Refusal.TOO_MUCH:
            self._ask_for_less(limit, wanted, answer, now)
        else:
            self._quiet_until = now + 1.0
            log.info("The resize was not answered (%s); asking again.", answer.message)

    def _ask_for_less(
        self, limit: Quantity, wanted: Quantity, answer: ResizeAnswer, now: float
    ) -> None:
        """Half-way between what is and what was refused, until that is hardly anything."""
        assert self.resizer is not None
        less = whole_mebibytes(limit + (wanted - limit) // 2)
        if less - limit < 0.05 * limit:
            self._quiet_until = now + PATIENCE_S
            log.warning("No more memory can be had in place: %s", answer.message)
            return
        second = self.resizer.resize(less)
        if second.refusal is None:
            self._asked, self._asked_at = less, now
        elif second.refusal is Refusal.TOO_MUCH:
            self._ask_for_less(limit, less, second, now)
        else:
            self._quiet_until = now + 1.0


class MemoryMonitor:
    """A thread that reads the cgroup every `PERIOD_S` seconds, until it is stopped.

    Args:
        cgroup: what is read.
        report: where the peak is reported.
        on_reading: called with each reading and the time.
        clock: seconds.
    """

    def __init__(
        self,
        cgroup: Cgroup,
        report: TerminationReport,
        on_reading: Callable[[MemoryReading, float], None] = lambda _reading, _now: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cgroup, self._report, self._clock = cgroup, report, clock
        self._on_reading = on_reading
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mlops-ext-memory", daemon=True)
        self._begin = clock()
        self.peak = 0
        first = cgroup.read()
        self._kills_before = first.oom_kills if first else 0
        self.first_limit = first.limit if first else None
        self.limit = self.first_limit
        self.oom_kills = 0
        self._reported = -1.0

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def stop(self) -> None:
        """Read once more, and end."""
        self._stop.set()
        self._thread.join(timeout=2 * PERIOD_S)
        self.poll()

    @property
    def runtime_s(self) -> float:
        """Seconds since this monitor was made."""
        return self._clock() - self._begin

    def poll(self) -> None:
        """Read once: peak, report, listener."""
        reading = self._cgroup.read()
        if reading is None:
            return
        self.limit = reading.limit
        self.oom_kills = reading.oom_kills - self._kills_before
        is_news = reading.resident > 1.01 * self._reported or self.oom_kills > 0
        self.peak = max(self.peak, reading.resident)
        if is_news:
            self.write_report()
            self._reported = self.peak
        self._on_reading(reading, self._clock())

    def write_report(self, **more: object) -> None:
        """Write what is known, and *more*, to the termination message."""
        kills = {"oom_kills": self.oom_kills} if self.oom_kills else {}
        self._report.write({"peak": self.peak, "limit": self.limit, **kills} | more)

    def _run(self) -> None:
        while not self._stop.wait(PERIOD_S):
            try:
                self.poll()
            except Exception:  # the monitor must never be what ends a step
                log.warning("a reading of the step's memory failed", exc_info=True)
