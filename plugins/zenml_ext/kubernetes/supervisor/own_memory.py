"""The memory of the orchestrator's own pod: warns, and records it, when its limit is too small.

Nobody raises that limit but the user: a Job's pod template cannot be changed. A pod that was killed
is followed by one that goes on where it was, with the same limit, and may be killed again.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any
from uuid import UUID

from kubernetes.client.rest import ApiException
from typing_extensions import Self
from urllib3.exceptions import HTTPError

from mlops_ext.memory import Quantity
from zenml_ext.kubernetes.client import KubeApi, describe_api_error
from zenml_ext.kubernetes.monitor import MemoryMonitor, TerminationReport
from zenml_ext.memory import records
from zenml_ext.memory.cgroup import MemoryCgroup, MemoryReading

log = logging.getLogger(__name__)

NEAR = 0.85
"""With more than this in use the next ten steps may be too many: each takes a thread and a few
objects, and the heap does not shrink again."""
_ROOM = 1.5
"""What is advised: half as much again as was seen, since a peak that ended in a kill is cut off."""
_ROUND = 100 * 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierKills:
    """Earlier pods of the orchestrator's Job that were killed for memory.

    Attributes:
        count: how many.
        limit: the limit they had; None: none.
        peak: the most they were seen to use; None: not known.
    """

    count: int
    limit: Quantity | None
    peak: Quantity | None


class OrchestratorMemory:
    """Monitors this process's container inside ``with``, and says when its limit is too small."""

    def __init__(
        self, *, cgroup: MemoryCgroup | None = None, report: TerminationReport | None = None
    ) -> None:
        self.run_id: str | None = None
        self._cgroup = cgroup or MemoryCgroup.own()
        self._report = report or TerminationReport()
        self._monitor: MemoryMonitor | None = None
        self._kills = 0

    def __enter__(self) -> Self:
        """Begin, if there is a cgroup to read."""
        if self._cgroup is not None and self._monitor is None:
            self._monitor = MemoryMonitor(self._cgroup, self._report, warn_once_when_near())
            self._monitor.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End, and record a limit that was nearly reached."""
        if self._monitor is None:
            return
        self._monitor.stop()
        limit = self._monitor.limit
        if limit and self._monitor.peak > NEAR * limit:
            self._notify(Quantity(limit), Quantity(self._monitor.peak))

    def report_earlier_kills(self, api: KubeApi, run_id: str) -> None:
        """Say so if earlier pods of this run's orchestrator were killed for memory.

        Two calls of the API, made only if another process had begun the run. What cannot be
        read is left alone.
        """
        self.run_id = run_id
        try:
            own = socket.gethostname()
            name = (api.pod(own)["metadata"].get("labels") or {}).get("job-name")
            found = earlier_kills(api.pods_of(name), own) if name else None
        except (ApiException, HTTPError, OSError) as error:
            log.debug(
                "the orchestrator's earlier pods cannot be read: %s", describe_api_error(error)
            )
            return
        if found is not None:
            self._kills = found.count
            self._notify(found.limit, found.peak)

    def _notify(self, limit: Quantity | None, peak: Quantity | None) -> None:
        words = advice(limit, peak, self._kills)
        log.warning("%s", words)
        if self.run_id is not None:
            sizes = {"limit": limit, "peak": peak}
            records.record_orchestrator(
                UUID(self.run_id),
                {
                    "kills": self._kills,
                    "advice": words,
                    **{key: size.human for key, size in sizes.items() if size},
                    **{f"{key}_bytes": int(size) for key, size in sizes.items() if size},
                },
            )


def warn_once_when_near(share: float = NEAR) -> Callable[[MemoryReading, float], None]:
    """A listener that says once that more than *share* of the limit is in use."""
    said = False

    def on_reading(reading: MemoryReading, _now: float) -> None:
        nonlocal said
        if not said and reading.limit and reading.used > share * reading.limit:
            said = True
            log.warning("%s", advice(Quantity(reading.limit), Quantity(reading.used), 0))

    return on_reading


def advice(limit: Quantity | None, peak: Quantity | None, kills: int) -> str:
    """What to tell the user, in two sentences."""
    has = f"its limit of {limit.human}" if limit else "its node's memory"
    seen = max(peak or 0, (limit or 0) if kills else 0)
    enough = Quantity(-(-int(seen * _ROOM) // _ROUND) * _ROUND)
    what = (
        f"was killed for memory {kills} time{'s' if kills > 1 else ''} at {has}, and goes on where"
        " it was"
        if kills
        else f"used {peak.human if peak else 'nearly all'} of {has}"
    )
    more = f" to {enough.human} or more" if enough else ""
    return (
        f"The orchestrator's pod {what}. Set orchestrator_memory (or the memory in"
        f" orchestrator_pod_settings){more}."
    )


def earlier_kills(pods: list[dict[str, Any]], own: str) -> EarlierKills | None:
    """The kills of the orchestrator's *pods* other than *own*; None if there was none."""
    limits: list[int] = []
    peaks: list[int] = []
    count = 0
    for pod in pods:
        if pod["metadata"]["name"] == own:
            continue
        for status in pod["status"].get("containerStatuses") or ():
            end: Mapping[str, Any] = (status.get("state") or {}).get("terminated") or {}
            if end.get("reason") != "OOMKilled":
                continue
            count += 1
            limits += [_memory_limit(pod, status["name"])]
            peaks += [_peak(end.get("message") or "")]
    if not count:
        return None
    limit, peak = max(limits), max(peaks)
    return EarlierKills(
        count=count,
        limit=Quantity(limit) if limit else None,
        peak=Quantity(peak) if peak else None,
    )


def _memory_limit(pod: Mapping[str, Any], name: str) -> int:
    for container in pod["spec"]["containers"]:
        limits = (container.get("resources") or {}).get("limits") or {}
        if container["name"] == name and "memory" in limits:
            return Quantity.parse(limits["memory"])
    return 0


def _peak(text: str) -> int:
    try:
        found = json.loads(text)
        return int(found.get("peak") or 0)
    except (ValueError, AttributeError, TypeError):
        return 0
