"""The watchdog inside a controller: it explains steps that wait, and stops those left behind."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from clearml_ext.sdk import nodes_of, own_task_id, start_of_job, stop_event_of, task_of
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import take_snapshot
from clearml_ext.server.tasks import (
    Launched,
    fail_task,
    launched_by_controller,
    move_task,
    pipeline_tasks,
    stop_children,
)
from clearml_ext.settings import ClearmlSettings
from clearml_ext.watchdog.explain import Cause, explain, free_queue
from clearml_ext.watchdog.reaper import Reaper
from mlops_ext.errors import MlopsExtError

log = logging.getLogger(__name__)

_NOT_ENQUEUED_POLLS = 5
"""Polls after which a step that is in no queue is given up: launching takes one or two."""
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
        return start_of_job(self.node) is not None and float(self) > 0


def guard_time_limits(pipeline: Any) -> None:
    """Give the steps of *pipeline* time limits that start with the step."""
    for node in nodes_of(pipeline):
        if node.timeout and not isinstance(node.timeout, StepTimeLimit):
            limit = StepTimeLimit(node.timeout)
            limit.node = node
            node.timeout = limit


class PipelineMonitor:
    """One look after another at a controller and its steps.

    Args:
        client: asks the server.
        controller: id of the controller's task.
        settings: how long is too long, and what to do then.
        launched: says what the controller launched, where this is its process; by default its
            task on the server does.
        notify: gets each explanation, once.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        client: Client,
        controller: str,
        settings: ClearmlSettings,
        *,
        launched: Callable[[], Launched | None] = lambda: None,
        notify: Callable[[str], object] = log.warning,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client, self.controller, self.settings = client, controller, settings
        self.launched, self.notify, self.clock = launched, notify, clock
        self.own: Mapping[str, Any] = {}
        self.children: list[Mapping[str, Any]] = []
        self._since: dict[str, float] = {}
        self._last_message: dict[str, str] = {}
        self._polls: dict[str, int] = {}

    def poll(self) -> bool:
        """Ask the server once; returns whether the controller still runs.

        Raises:
            ServerError: the server does not answer.
        """
        launched = self.launched()
        self.own, self.children = pipeline_tasks(self.client, self.controller, launched)
        aborted = self.own.get("status_message") == "stopping"
        if self.own.get("status") not in _RUNS or aborted:
            for name in stop_children(self.client, self.controller, launched):
                self.notify(f'step "{name}" was stopped with its pipeline')
            return False
        overdue = [child for child in self.children if self._is_overdue(child)]
        if overdue:
            self._explain(overdue)
        return True

    def _is_overdue(self, child: Mapping[str, Any]) -> bool:
        number, status = str(child["id"]), child.get("status")
        if status not in {"queued", "created"}:
            self._since.pop(number, None)
            self._polls.pop(number, None)
            return False
        since = self._since.setdefault(number, self.clock())
        if status == "created":
            self._polls[number] = self._polls.get(number, 0) + 1
            return self._polls[number] > _NOT_ENQUEUED_POLLS
        self._polls.pop(number, None)
        return self.clock() - since >= self.settings.pending_s

    def _explain(self, overdue: list[Mapping[str, Any]]) -> None:
        snapshot = take_snapshot(self.client, self.settings)
        for child in overdue:
            number = str(child["id"])
            found = explain(child, snapshot, {self.controller})
            if self._last_message.get(number) != found.text:
                self._last_message[number] = found.text
                self.notify(found.text)
            if found.cause is Cause.NOT_ENQUEUED:
                self._give_up(number, found.text)
            elif found.stuck and self.settings.move:
                here = next((q for q, ids in snapshot.entries.items() if number in ids), "")
                queue = free_queue(snapshot, self.settings, here)
                if queue and move_task(self.client, snapshot, number, here, queue):
                    self._since.pop(number, None)
                    self.notify(f'step "{child.get("name")}" was moved from {here} to {queue}')

    def _give_up(self, number: str, text: str) -> None:
        """Fail a step that no agent will ever see, so that its controller goes on."""
        fail_task(self.client, number, text)


def start_watchdog(pipeline: Any, settings: ClearmlSettings, reaper: Reaper) -> None:
    """Watch *pipeline* from a thread of this process, and by *reaper* from one that outlives it."""
    task = task_of(pipeline)
    if task is None:
        return
    guard_time_limits(pipeline)
    try:
        client = Client.from_configuration(settings.timeout_s)
        if own_task_id() is not None:
            reaper.start(client, str(task.id))
    except MlopsExtError as error:
        log.warning("the pipeline is not watched: %s", error)
        return
    monitor = PipelineMonitor(
        client, str(task.id), settings, launched=lambda: launched_by_controller(pipeline)
    )
    threading.Thread(
        target=_run, args=(pipeline, monitor), name="mlops-ext-watchdog", daemon=True
    ).start()


def _run(pipeline: Any, monitor: PipelineMonitor) -> None:
    """The watchdog's thread: one poll per interval until the controller's own thread ends."""
    stop = stop_event_of(pipeline)
    failed_before = False
    while not stop.wait(monitor.settings.interval_s):
        guard_time_limits(pipeline)
        try:
            if not monitor.poll():
                return
            failed_before = False
        except MlopsExtError as error:
            if not failed_before:
                log.warning("the watchdog cannot ask the server: %s", error)
            failed_before = True
        except Exception:  # a thread's boundary: the pipeline must go on without its watchdog
            log.exception("the watchdog ends")
            return
