"""The watchdog inside a controller: it explains steps that wait, and stops those left behind."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from clearml_ext.server.client import Client
from clearml_ext.server.family import family, move_task, stop_children
from clearml_ext.server.process import own_task_id
from clearml_ext.server.snapshot import take_snapshot
from clearml_ext.server.tasks import Launched, launched_by_controller
from clearml_ext.settings import ClearmlSettings
from clearml_ext.watchdog.explain import Cause, explain, free_queue
from clearml_ext.watchdog.reaper import Undertaker
from mlops_ext.errors import MlopsExtError

__all__ = ["StepTimeLimit", "Watch", "start_watchdog"]

log = logging.getLogger(__name__)

_NOT_ENQUEUED_LOOKS = 5
"""Looks after which a step that is in no queue is given up: launching takes one or two."""
_RUNS = frozenset({"in_progress", "queued"})


class StepTimeLimit(float):
    """A step's time limit that does not count before the step has started.

    The controller's loop asks ``if node.timeout:`` and then subtracts the start, which is None
    while the step waits in a queue; the exception ends the loop's thread, and nobody notices
    (https://github.com/clearml/clearml/issues/1640). This one is false until there is a start.
    """

    __slots__ = ("node",)

    node: Any

    def __bool__(self) -> bool:
        """Whether the step has started and has a limit."""
        job = getattr(self.node, "job", None)
        started = getattr(getattr(getattr(job, "task", None), "data", None), "started", None)
        return started is not None and float(self) > 0


def guard_time_limits(pipeline: Any) -> None:
    """Give the steps of *pipeline* time limits that start with the step."""
    for node in list(pipeline._nodes.values()):  # noqa: SLF001  # the DAG has no public name
        if node.timeout and not isinstance(node.timeout, StepTimeLimit):
            limit = StepTimeLimit(node.timeout)
            limit.node = node
            node.timeout = limit


class Watch:
    """One look after another at a controller and its steps.

    Args:
        client: asks the server.
        controller: id of the controller's task.
        settings: how long is too long, and what to do then.
        launched: says what the controller launched, where this is its process; by default its
            task on the server does.
        tell: gets each explanation, once.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        client: Client,
        controller: str,
        settings: ClearmlSettings,
        *,
        launched: Callable[[], Launched | None] = lambda: None,
        tell: Callable[[str], object] = log.warning,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client, self.controller, self.settings = client, controller, settings
        self.launched, self.tell, self.clock = launched, tell, clock
        self.own: Mapping[str, Any] = {}
        self.children: list[Mapping[str, Any]] = []
        self._since: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self._looks: dict[str, int] = {}

    def look(self) -> bool:
        """Look once; returns whether the controller still runs.

        Raises:
            ServerError: the server does not answer.
        """
        launched = self.launched()
        self.own, self.children = family(self.client, self.controller, launched)
        aborted = self.own.get("status_message") == "stopping"
        if self.own.get("status") not in _RUNS or aborted:
            for name in stop_children(self.client, self.controller, launched):
                self.tell(f'step "{name}" was stopped with its pipeline')
            return False
        overdue = [child for child in self.children if self._is_overdue(child)]
        if overdue:
            self._explain(overdue)
        return True

    def _is_overdue(self, child: Mapping[str, Any]) -> bool:
        number, status = str(child["id"]), child.get("status")
        if status not in {"queued", "created"}:
            self._since.pop(number, None)
            self._looks.pop(number, None)
            return False
        since = self._since.setdefault(number, self.clock())
        if status == "created":
            self._looks[number] = self._looks.get(number, 0) + 1
            return self._looks[number] > _NOT_ENQUEUED_LOOKS
        self._looks.pop(number, None)
        return self.clock() - since >= self.settings.pending_s

    def _explain(self, overdue: list[Mapping[str, Any]]) -> None:
        snapshot = take_snapshot(self.client, self.settings)
        for child in overdue:
            number = str(child["id"])
            found = explain(child, snapshot, {self.controller})
            if self._told.get(number) != found.text:
                self._told[number] = found.text
                self.tell(found.text)
            if found.cause is Cause.NOT_ENQUEUED:
                self._give_up(number, found.text)
            elif found.stuck and self.settings.move:
                here = next((q for q, ids in snapshot.entries.items() if number in ids), "")
                queue = free_queue(snapshot, self.settings, here)
                if queue and move_task(self.client, snapshot, number, here, queue):
                    self._since.pop(number, None)
                    self.tell(f'step "{child.get("name")}" was moved from {here} to {queue}')

    def _give_up(self, number: str, text: str) -> None:
        """Fail a step that no agent will ever see, so that its controller goes on."""
        self.client.call(
            "tasks.failed",
            {"task": number, "force": True, "status_reason": "mlops-ext", "status_message": text},
        )


def start_watchdog(pipeline: Any, settings: ClearmlSettings) -> None:
    """Watch *pipeline* from a thread of this process, and from a process that outlives it."""
    task = getattr(pipeline, "_task", None)
    if task is None or getattr(pipeline, "_mlops_ext_watched", False):
        return
    pipeline._mlops_ext_watched = True  # noqa: SLF001  # our own mark
    guard_time_limits(pipeline)
    try:
        client = Client.from_configuration(settings.timeout_s)
        if own_task_id() is not None:
            _report_launches(pipeline, Undertaker(client, str(task.id)))
    except MlopsExtError as error:
        log.warning("the pipeline is not watched: %s", error)
        return
    watch = Watch(client, str(task.id), settings, launched=lambda: launched_by_controller(pipeline))
    threading.Thread(
        target=_run, args=(pipeline, watch), name="mlops-ext-watchdog", daemon=True
    ).start()


def _report_launches(pipeline: Any, undertaker: Undertaker) -> None:
    """Have *undertaker* told of each step's task before it is enqueued."""
    given = pipeline._experiment_created_cb  # noqa: SLF001  # how the SDK keeps the callback of start()

    def created(controller: Any, node: Any, parameters: Any) -> Any:
        undertaker.tell(str(node.job.task_id()))
        return given(controller, node, parameters) if given else None

    pipeline._experiment_created_cb = created  # noqa: SLF001  # likewise


def _run(pipeline: Any, watch: Watch) -> None:
    """The watchdog's thread: one look per interval until the controller's own thread ends."""
    stop = pipeline._stop_event  # noqa: SLF001  # the loop's only sign of its end
    failed_before = False
    while not stop.wait(watch.settings.interval_s):
        guard_time_limits(pipeline)
        try:
            if not watch.look():
                return
            failed_before = False
        except MlopsExtError as error:
            if not failed_before:
                log.warning("the watchdog cannot look: %s", error)
            failed_before = True
        except Exception:  # a thread's boundary: the pipeline must go on without its watchdog
            log.exception("the watchdog ends")
            return
