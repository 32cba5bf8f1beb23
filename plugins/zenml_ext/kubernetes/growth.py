"""When to ask for a larger memory limit, and what each answer leads to. Pure but for the resizer.

A resize that the API server accepts is only a wish: the node may defer it, or never do it. A wish
that stands keeps the node's memory from others (https://github.com/kubernetes/kubernetes/issues/135107),
so it is withdrawn after a while.
"""

from __future__ import annotations

import enum
import logging
import math
from dataclasses import dataclass, field
from typing import Any

from mlops_ext.memory import InPlace, Quantity
from zenml_ext.memory.cgroup import MemoryReading

log = logging.getLogger(__name__)

MOST = 1.5
"""No limit is raised beyond this many times what is in use: the request rises with it, and
neighbours wait for what is not needed."""
LATENCY_S = 3.0
"""A resize takes effect within 2 s on the cluster it was measured on; later its own count."""
# A smaller raise is not worth a call.
_WORTH = 1.05
# How often an agreed resize is looked after.
_LOOK_S = 3.0
# How long a resize may wait for room on the node: what it waits for, others wait for too.
_DEFERRED_S = 10.0
# How long the kubelet may take for a resize that nothing speaks against.
_SLOW_S = 60.0
# A pause after a refusal for want of room, doubled each time.
_QUIET_S, _LONGEST_QUIET_S = 10.0, 300.0
_MIB = 1 << 20
NEVER_S = -1.0
"""The latency of a resize that never took effect: JSON has no infinity."""


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
        pending: why an agreed resize has not begun: "Deferred", "Infeasible", or "".
    """

    refusal: Refusal | None
    message: str = ""
    pending: str = ""


@dataclass(slots=True, kw_only=True)
class Growth:
    """Decides when to ask for more, and remembers what came of it.

    Attributes:
        rule: when and by how much to grow; None: never.
        resizer: asks, and never raises: `zenml_ext.kubernetes.resize.PodResizer`; None where this
            process cannot ask.
        resizes_s: for each wish the seconds until it took effect; `NEVER_S` for one withdrawn.
        stopped: why it asks no more, or "".
    """

    rule: InPlace | None
    resizer: Any
    resizes_s: list[float] = field(default_factory=list)
    stopped: str = ""
    _asked: Quantity | None = None
    _asked_at: float = 0.0
    _look_at: float = 0.0
    _last: tuple[float, int] | None = None
    _rate: float = 0.0
    _quiet_until: float = 0.0
    _pause_s: float = _QUIET_S

    @property
    def latency_s(self) -> float:
        """Seconds that a resize takes here: the longest seen, or a guess."""
        return max((s for s in self.resizes_s if s != NEVER_S), default=LATENCY_S)

    def on_reading(self, reading: MemoryReading, now: float) -> None:
        """Take note of *reading* at time *now*; ask for a larger limit where it is due."""
        self._follow(reading.used, now)
        if not self.rule or not self.resizer or not reading.limit:
            return
        limit = Quantity(reading.limit)
        if self._asked is not None:
            self._look_after(self._asked, limit, now)
        elif not self.stopped and now >= self._quiet_until:
            wanted = self._wanted(self.rule, limit, reading.used)
            if wanted is not None:
                self._ask(limit, wanted, reading.used, now)

    def _follow(self, used: int, now: float) -> None:
        """The pace of growth in bytes per second: quick to rise, slow to fall."""
        if self._last is not None and now > self._last[0]:
            pace = (used - self._last[1]) / (now - self._last[0])
            self._rate = max(pace, 0.7 * self._rate + 0.3 * pace)
        self._last = (now, used)

    def _wanted(self, rule: InPlace, limit: Quantity, used: int) -> Quantity | None:
        """The limit to ask for: what is used by the time it takes effect, and not far above it."""
        ahead = used + round(max(0.0, self._rate) * (self.latency_s + 1))
        wanted = rule.next_limit(limit, max(used, ahead) if ahead >= limit else used)
        if wanted is None:
            return None
        size = min(wanted, math.ceil(MOST * used))
        wanted = Quantity(-(-size // _MIB) * _MIB)  # the kernel rounds down, and people read Mi
        wanted = min(wanted, rule.ceiling) if rule.ceiling else wanted
        return wanted if wanted >= _WORTH * limit else None

    def _ask(self, limit: Quantity, wanted: Quantity, used: int, now: float) -> None:
        """Ask for *wanted*; where that is too much, for half-way to it, and again."""
        answer = self.resizer.resize(wanted)
        while answer.refusal is Refusal.TOO_MUCH and wanted >= _WORTH * limit:
            wanted = Quantity(limit + (wanted - limit) // 2)
            answer = self.resizer.resize(wanted)
        if answer.refusal is None:
            words = "%s of %s are in use: asked for %s in place."
            log.info(words, Quantity(used).human, limit.human, wanted.human)
            self._asked, self._asked_at, self._look_at = wanted, now, now + _LOOK_S
        elif answer.refusal is Refusal.FOR_GOOD:
            self.stopped = answer.message
            log.warning(
                "This pod cannot be resized while it runs (%s); if it is killed for memory it"
                " runs again with more.",
                answer.message,
            )
        elif answer.refusal is Refusal.TOO_MUCH:
            self._rest("No more memory can be had in place", answer.message, now)
        else:
            self._quiet_until = now + 1.0
            log.info("The resize was not answered (%s); asking again.", answer.message)

    def _look_after(self, asked: Quantity, limit: Quantity, now: float) -> None:
        """Note that a wish came true, or withdraw one that did not within its time."""
        waited = now - self._asked_at
        if limit > asked - _MIB:  # the kernel rounds down to pages
            log.info("The memory limit is %s now.", limit.human)
            self.resizes_s.append(round(waited, 1))
            self._asked, self._pause_s = None, _QUIET_S
            return
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_S
        pending = self.resizer.look().pending
        is_late = waited >= (_DEFERRED_S if pending else _SLOW_S)
        if not is_late and pending != "Infeasible":
            return
        if self.resizer.withdraw(limit).refusal is Refusal.FOR_NOW:
            return  # at the next look
        self.resizes_s.append(NEVER_S)
        self._asked = None
        words = (
            f"the node does not give {asked.human} ({pending or 'no answer'}), so it is withdrawn"
        )
        self._rest("No more memory can be had in place", words, now)

    def _rest(self, what: str, why: str, now: float) -> None:
        log.warning("%s: %s", what, why)
        self._quiet_until = now + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_QUIET_S)
