"""A step waits: for a node, for a quota, for another step. It is told, and kept alive meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlops_ext.redaction import redacted
from zenml_ext.kubernetes.client import KubeApi
from zenml_ext.kubernetes.objects.capacity import CapsReader, Refused
from zenml_ext.kubernetes.objects.job import run_id_of, step_name_of
from zenml_ext.kubernetes.objects.state import Track
from zenml_ext.kubernetes.supervisor.kubernetes_watch import Watch
from zenml_ext.kubernetes.supervisor.scheduling import is_without_pod, no_room, why_no_pod
from zenml_ext.kubernetes.supervisor.step_runs import Book, StepRow

__all__ = ["Waits", "row_of"]

log = logging.getLogger(__name__)

Manifest = Mapping[str, Any]

_BEAT_S = 20.0
"""ZenML's own worker beats every 15 s, and its thresholds are minutes."""
_EVENTS_S = 10.0
"""A Job without a pod is asked why this often, no oftener."""
_PODLESS_S = 2.0
"""Kubernetes makes a Job's pod within a second; asking earlier would be a call for nothing."""


class Waits:
    """What is done about steps that wait.

    Args:
        book: ZenML's side.
        clock: seconds.
    """

    def __init__(self, book: Book, clock: Callable[[], float]) -> None:
        self._book, self._clock = book, clock

    def look(
        self,
        api: KubeApi,
        watch: Watch,
        job: Manifest,
        track: Track,
        pods: Sequence[Manifest],
        *,
        caps: CapsReader,
        timeout_s: float,
    ) -> Refused | None:
        """Why a step's Job that is not over has no pod that runs; None where nothing is wrong.

        Args:
            api: where to ask.
            watch: what is remembered of the step.
            job: its Job.
            track: the Job's track.
            pods: its pods, where ZenML has read them.
            caps: what the nodes can give.
            timeout_s: how long a pod may wait for memory where nodes may not be read.
        """
        status = job.get("status") or {}
        if track.number > 1 and not status.get("ready"):
            self._find_row(watch, job)
            self.beat(watch)
        refused = no_room(api, caps, pods, watch, now=self._clock(), wait_s=timeout_s)
        if is_without_pod(status):
            refused = self._refused(api, watch)
        else:
            watch.podless_since = None
        if refused is not None and not refused.for_good and refused.message != watch.told:
            log.warning("Step %s waits: %s", step_name_of(job), refused.message)
            watch.told = refused.message
        return refused

    def beat(self, watch: Watch) -> None:
        """A pod that waits cannot send heartbeats; without them ZenML would stop the step."""
        if watch.held is not None:
            self._find_row(watch, watch.held)
        if watch.row is None or not watch.beats or self._clock() - watch.beat_at < _BEAT_S:
            return
        watch.beat_at = self._clock()
        try:
            watch.beats = self._book.beat(watch.row)
        except Exception as error:  # noqa: BLE001 - the next one is due in seconds
            log.debug("no heartbeat for %s: %s", watch.row.identifier, redacted(error))

    def _refused(self, api: KubeApi, watch: Watch) -> Refused | None:
        """Why a Job has no pod, asked now and then, and not about the moment before it has one."""
        if watch.podless_since is None:
            watch.podless_since = self._clock()
        if self._clock() - watch.podless_since < _PODLESS_S:
            return None
        if self._clock() - watch.events_at < _EVENTS_S:
            return Refused(message=watch.told, for_good=False) if watch.told else None
        watch.events_at = self._clock()
        return why_no_pod(api, watch.current)

    def _find_row(self, watch: Watch, job: Manifest) -> None:
        if watch.row is None and watch.beats:
            try:
                watch.row = row_of(self._book, job)
            except Exception as error:  # noqa: BLE001 - asked again with the next look
                log.debug("no step run for %s: %s", step_name_of(job), redacted(error))


def row_of(book: Book, job: Manifest) -> StepRow | None:
    """The step run that a step's Job works on; None where there is none yet."""
    step_run_id = (job["metadata"].get("labels") or {}).get("step_run_id")
    if step_run_id:
        return book.row(step_run_id)
    return book.newest_row(run_id_of(job), step_name_of(job))
