"""The memory of the orchestrator's own pod: grows in place, and says when its limit is too small.

A Job's pod template cannot be changed. A pod that was killed is followed by one that goes on where
it was, with the limit it began with.
"""

from __future__ import annotations

import logging
import socket
from typing import Any
from uuid import UUID

from typing_extensions import Self

from mlops_ext.memory import InPlace, Quantity
from mlops_ext.settings import environment
from zenml_ext.kubernetes.client import UNANSWERED, KubeApi, describe_api_error
from zenml_ext.kubernetes.objects.diagnosis import Termination, diagnose
from zenml_ext.kubernetes.objects.job import MAIN, POD_VARIABLE
from zenml_ext.kubernetes.watcher import Watch
from zenml_ext.memory import records
from zenml_ext.memory.cgroup import MemoryCgroup

log = logging.getLogger(__name__)

NEAR = 0.85
"""With more than this in use the next ten steps may be too many: each takes a thread and a few
objects, and the heap does not shrink again."""
# What is advised: half as much again as was seen, since a peak that ended in a kill is cut off.
_ROOM = 1.5
_ROUND = 100 * 1024**2


class OrchestratorMemory:
    """Has this process's container watched inside ``with``, and its limit grow where it may.

    Says so if the limit was too small.
    """

    def __init__(self, run_id: str | None = None, *, cgroup: MemoryCgroup | None = None) -> None:
        self.run_id = run_id
        self._kills = 0
        self._watch: Watch | None = None
        cgroup = cgroup or MemoryCgroup.own()
        reading = cgroup.read() if cgroup else None
        if cgroup and reading:
            limit = Quantity(reading.limit) if reading.limit else None
            rule = InPlace(start=limit, threshold=NEAR, growth=1.5) if limit else None
            pod = environment().get(POD_VARIABLE, "")
            self._watch = Watch(cgroup, rule, pod=pod, container=MAIN)

    def __enter__(self) -> Self:
        """Begin, if there is a cgroup to read."""
        if self._watch is not None:
            self._watch.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        """End, and record a limit that was nearly reached."""
        if self._watch is None:
            return
        self._watch.stop()
        seen = self._watch.look()
        if seen.first_limit and seen.peak > NEAR * seen.first_limit:
            self._notify(Quantity(seen.first_limit), Quantity(seen.peak))

    def report_earlier_kills(self, api: KubeApi, run_id: str) -> None:
        """Say so if earlier pods of this run's orchestrator were killed for memory.

        Two calls of the API, made only if another process had begun the run. What cannot be
        read is left alone.
        """
        self.run_id = run_id
        try:
            own = socket.gethostname()
            name = (api.pod(own)["metadata"].get("labels") or {}).get("job-name")
            found = earlier_kills(api.pods_of(name), own) if name else []
        except UNANSWERED as error:
            log.debug(
                "the orchestrator's earlier pods cannot be read: %s", describe_api_error(error)
            )
            return
        if found:
            self._kills = len(found)
            self._notify(
                max((end.memory for end in found if end.memory), default=Quantity(0)),
                max((end.evidence.peak for end in found if end.evidence.peak), default=Quantity(0)),
            )

    def _notify(self, limit: Quantity, peak: Quantity) -> None:
        """Log and record what the pod lacked; sizes are 0 if they are not known."""
        words = advice(limit, peak, self._kills)
        log.warning("%s", words)
        if self.run_id is not None:
            sizes = {"limit_bytes": int(limit), "peak_bytes": int(peak)}
            known = {name: size for name, size in sizes.items() if size}
            values = {"kills": self._kills, "advice": words, **known}
            records.record_orchestrator(UUID(self.run_id), values)


def advice(limit: Quantity, peak: Quantity, kills: int) -> str:
    """Advice for the user, in two sentences; a size of 0 is unknown and left out."""
    enough = Quantity(-(-int(max(peak, limit if kills else 0) * _ROOM) // _ROUND) * _ROUND)
    had = f"its limit of {limit.human}" if limit else "its node's memory"
    what = f"used {peak.human} of {had}"
    if kills:
        times = "1 time" if kills == 1 else f"{kills} times"
        what = f"was killed for memory {times} at {had}, and goes on"
    size = f" to {enough.human} or more" if enough else ""
    return (
        f"The orchestrator's pod {what}. Set orchestrator_memory (or the memory in"
        f" orchestrator_pod_settings){size}."
    )


def earlier_kills(pods: list[dict[str, Any]], own: str) -> list[Termination]:
    """How those of the orchestrator's *pods* other than *own* ended that were killed for memory."""
    others = [pod for pod in pods if pod["metadata"]["name"] != own]
    ends = [diagnose({"spec": {"template": pod}}, [pod]) for pod in others]
    return [end for end in ends if end.evidence.oom_killed]
