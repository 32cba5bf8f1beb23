"""The watchdog inside a controller: it explains steps that wait, and stops those left behind."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from clearml_ext.sdk import nodes_of, own_task_id, start_of_job, stop_event_of, task_of
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import Snapshot, take_snapshot
from clearml_ext.server.statuses import WAITING, Status
from clearml_ext.server.tasks import (
    Launched,
    fail_task,
    is_aborted,
    launched_by_controller,
    launched_by_task,
    move_task,
    pipeline_tasks,
    stop_children,
)
from clearml_ext.settings import ClearmlSettings
from clearml_ext.watchdog.explain import explain, free_queue
from clearml_ext.watchdog.reaper import Reaper
from mlops_ext.errors import MlopsExtError

log = logging.getLogger(__name__)

# Polls during which a step may have a task and be in no queue: launching takes one or two.
_LAUNCH_POLLS = 5
_RUNS = frozenset({Status.IN_PROGRESS, Status.QUEUED})


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
        return float(self) > 0 and start_of_job(self.node) is not None


def guard_time_limits(pipeline: Any) -> None:
    """Give the steps of *pipeline* time limits that start with the step."""
    for node in nodes_of(pipeline):
        if not isinstance(node.timeout, StepTimeLimit) and node.timeout:
            limit = StepTimeLimit(node.timeout)
            limit.node = node
            node.timeout = limit


@dataclass(slots=True, eq=False)
class PipelineMonitor:
    """One poll after another of a controller and its steps.

    It observes and explains. Only where it may act, it stops the steps of a pipeline that somebody
    aborted, fails a step whose queue does not exist, and, if the settings ask for it, moves a
    step that is stuck.

    Attributes:
        client: asks the server.
        controller: id of the controller's task.
        settings: how long is too long, and what to do then.
        acts: whether anything may be changed.
        launched: says what the controller launched, if this is its process; by default its task
            on the server says it.
        notify: gets each explanation, once.
        clock: seconds, monotonic.
        own: the controller's document at the last poll, empty if the server has none.
        children: the documents of its steps at the last poll.
    """

    client: Client
    controller: str
    settings: ClearmlSettings
    acts: bool
    launched: Callable[[], Launched | None] = lambda: None
    notify: Callable[[str], object] = log.warning
    clock: Callable[[], float] = time.monotonic
    own: Mapping[str, Any] = field(default_factory=dict)
    children: list[Mapping[str, Any]] = field(default_factory=list)
    _ran: bool = False
    _since: dict[str, float] = field(default_factory=dict)
    _last_message: dict[str, str] = field(default_factory=dict)

    def poll(self) -> bool:
        """Ask the server once; returns whether the controller still runs.

        Raises:
            ServerError: the server does not answer.
        """
        launched = self.launched()
        self.own, self.children = pipeline_tasks(self.client, self.controller, launched)
        aborted = is_aborted(self.own)
        if self.own.get("status") not in _RUNS or aborted:
            if self.acts and aborted and self._ran:
                for name in stop_children(self.client, self.controller, launched):
                    self.notify(f'step "{name}" was stopped with its pipeline')
            return False
        self._ran = True
        overdue = [child for child in self.children if self._is_overdue(child)]
        if overdue:
            self._explain(overdue, launched or launched_by_task(self.own))
        return True

    def _is_overdue(self, child: Mapping[str, Any]) -> bool:
        number, status = str(child["id"]), child.get("status")
        if status not in WAITING:
            self._since.pop(number, None)
            return False
        waited_s = self.clock() - self._since.setdefault(number, self.clock())
        if status == Status.CREATED:  # launching takes a poll or two
            return waited_s > _LAUNCH_POLLS * self.settings.interval_s
        return waited_s >= self.settings.pending_s

    def _explain(self, overdue: list[Mapping[str, Any]], launched: Launched) -> None:
        snapshot = take_snapshot(self.client, self.settings)
        for child in overdue:
            number = str(child["id"])
            if child.get("status") == Status.CREATED:
                self._give_up(child, launched.queues.get(number), snapshot)
                continue
            found = explain(child, snapshot, {self.controller})
            self._tell(number, found.text)
            if found.stuck and self.settings.move and self.acts:
                self._move(child, snapshot)

    def _tell(self, number: str, text: str) -> None:
        if self._last_message.get(number) != text:
            self._last_message[number] = text
            self.notify(text)

    def _move(self, child: Mapping[str, Any], snapshot: Snapshot) -> None:
        """Put a step that is stuck in a queue with a free agent, if there is one."""
        number = str(child["id"])
        here = next((q for q, ids in snapshot.entries.items() if number in ids), "")
        queue = free_queue(snapshot, self.settings, here)
        if here and queue and move_task(self.client, snapshot, number, here, queue):
            self._since.pop(number, None)
            self.notify(f'step "{child.get("name")}" was moved from {here} to {queue}')

    def _give_up(self, child: Mapping[str, Any], queue: str | None, snapshot: Snapshot) -> None:
        """Fail a step whose queue does not exist, so that its controller goes on.

        Any other step that is in no queue is somebody's business: a callback that waits for an
        approval, a draft, or a step that was dequeued to be put elsewhere.
        """
        if queue is None or snapshot.queue_name(queue) in snapshot.queues.values():
            return
        text = f'step "{child.get("name")}" could not be enqueued: there is no queue {queue}'
        self._tell(str(child["id"]), text)
        if self.acts:
            fail_task(self.client, str(child["id"]), text)


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
        client,
        str(task.id),
        settings,
        acts=True,
        launched=lambda: launched_by_controller(pipeline),
    )
    threading.Thread(
        target=run_watchdog, args=(pipeline, monitor), name="mlops-ext-watchdog", daemon=True
    ).start()


def run_watchdog(pipeline: Any, monitor: PipelineMonitor) -> None:
    """The watchdog's thread: one poll per interval until the controller's own thread ends."""
    stop = stop_event_of(pipeline)
    last_message = ""
    while not stop.wait(monitor.settings.interval_s):
        try:
            guard_time_limits(pipeline)
            if not monitor.poll():
                return
            last_message = ""
        except Exception as error:  # noqa: BLE001  # a thread's boundary: it goes on, and says so once
            message = f"{type(error).__name__}: {error}"
            if message != last_message:
                log.warning("the watchdog cannot poll, and tries again: %s", message)
            last_message = message
