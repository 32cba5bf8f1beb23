"""The whole workspace at one moment: what waits, what holds its agents, and what is stuck.

For people who look after it, and for cron: the answer needs no pipeline of one's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from clearml_ext.check.plans import Node, Plan, running_pipelines
from clearml_ext.check.preflight import check_plan
from clearml_ext.check.results import looks_at
from clearml_ext.server.client import Client
from clearml_ext.server.snapshot import Snapshot, take_snapshot
from clearml_ext.server.tasks import may_wait
from clearml_ext.settings import ClearmlSettings
from mlops_ext.queues.check import Topology

# Queues for which one more launch is played through; each takes milliseconds.
_LAUNCHES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """One queue.

    Attributes:
        name: its name.
        waiting: how many tasks wait in it.
        agents: live agents that listen to it.
        dead: agents that are listed, and no longer report.
        launch: what a pipeline would come to whose step goes there: "safe", "unsafe", "unknown",
            or "" if that was not looked at.
    """

    name: str
    waiting: int
    agents: tuple[str, ...]
    dead: tuple[str, ...]
    launch: str = ""

    @property
    def unserved(self) -> bool:
        """Whether tasks wait in this queue and no live agent listens."""
        return self.waiting > 0 and not self.agents


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A slot that is held by a task which waits for others, or never ends.

    Attributes:
        worker: the agent.
        task: name of the task, with the beginning of its id.
        type: the task's type.
        since: when it started, as the server writes it, or "".
    """

    worker: str
    task: str
    type: str
    since: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceStatus:
    """The workspace at one moment.

    Attributes:
        queues: all queues that are not hidden.
        held: the slots that are held by what waits.
        stuck: runs that can never end as things are, with the reason.
        notes: what could not be read.
    """

    queues: tuple[QueueStatus, ...]
    held: tuple[Held, ...]
    stuck: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def healthy(self) -> bool:
        """Whether no run is stuck, and no task waits in a queue without an agent."""
        return not self.stuck and not any(queue.unserved for queue in self.queues)

    def document(self) -> dict[str, Any]:
        """The same for JSON."""
        return {"healthy": self.healthy, **dataclasses.asdict(self)}


def workspace_status(client: Client, settings: ClearmlSettings) -> WorkspaceStatus:
    """The status of the workspace that *client* asks.

    Raises:
        ServerError: the server cannot be asked.
    """
    snapshot = take_snapshot(client, settings)
    workers, pipelines, notes = running_pipelines(snapshot, client)
    topology = Topology(workers=workers, pipelines=pipelines, queues=tuple(snapshot.names))
    return WorkspaceStatus(
        queues=tuple(_queues(snapshot, settings, client)),
        held=tuple(_held(snapshot)),
        stuck=tuple(text for _, verdict in looks_at(topology) for text in verdict.reasons),
        notes=(*snapshot.notes, *notes),
    )


def _queues(snapshot: Snapshot, settings: ClearmlSettings, client: Client) -> Iterator[QueueStatus]:
    for at, name in enumerate(snapshot.names):
        listed = [worker for worker in snapshot.workers if name in worker.queues]
        launch = ""
        if at < _LAUNCHES and name != settings.services_queue:
            plan = Plan(name="one more", nodes=(Node(name="step", queue=name),))
            result = check_plan(plan, settings.services_queue, snapshot, settings, client=client)
            launch = result.answer.value
        yield QueueStatus(
            name=name,
            waiting=len(snapshot.entries.get(name, ())),
            agents=tuple(each.name for each in listed if each.fresh),
            dead=tuple(each.name for each in listed if not each.fresh),
            launch=launch,
        )


def _held(snapshot: Snapshot) -> Iterator[Held]:
    for number, worker in snapshot.running.items():
        document = snapshot.tasks.get(number) or {}
        if may_wait(document):
            yield Held(
                worker=worker,
                task=f"{document.get('name')} ({number[:8]})",
                type=str(document.get("type")),
                since=str(document.get("started") or ""),
            )
