"""Launches that wait for their turn: no two pass each other between check and enqueue.

Each launch takes a ticket, as in a bakery (Lamport 1974): it says that it is choosing, reads the
tickets that are there, and takes a later one. Tickets are tags of the launch's own task, which is
the one place that it may write to and that all others can read. A launch goes on once nobody
chooses and no earlier ticket is left among those whose queues meet its own.

A ticket does not count once its task waits in a queue, runs on an agent or has ended, for then
the check itself sees it; nor one that is older than the bound, whose process may be gone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from clearml_ext.server.client import Client
from clearml_ext.server.statuses import Status
from clearml_ext.server.workers import parse_time

_PREFIX = "mlops-ext-launch:"
_TAG = re.compile(rf"{_PREFIX}(\d{{1,20}}):(\d{{1,20}}):(.*)", re.ASCII)
_CHOOSING = 0
# How long a stopped task may still be on its way: the SDK stops a task, then enqueues it.
_STOPPED_S = 60.0
_FIELDS = ["id", "tags", "status", "status_changed", "system_tags"]
# System tag of a task that runs where its script was started; enqueueing takes it away.
_ON_A_DESK = "development"


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Ticket:
    """The place of a launch in the line.

    Attributes:
        number: milliseconds of the server's clock, or later; 0 while it chooses.
        task: id of its task, which decides between equal numbers.
        asked: milliseconds of the server's clock when it came.
        queues: the queues that it will use.
    """

    number: int
    task: str
    asked: int
    queues: frozenset[str]

    def tag(self) -> str:
        """The ticket as a tag of its task."""
        return f"{_PREFIX}{self.number}:{self.asked}:{','.join(sorted(self.queues))}"


def tickets_of(document: Mapping[str, Any], now_ms: int) -> list[Ticket]:
    """The tickets on a task that is still where its script was started."""
    changed = parse_time(document.get("status_changed"))
    stopped = document.get("status") == Status.STOPPED and changed is not None
    late = changed is None or now_ms > (changed.timestamp() + _STOPPED_S) * 1000
    on_its_way = document.get("status") == Status.IN_PROGRESS or (stopped and not late)
    if not on_its_way or _ON_A_DESK not in (document.get("system_tags") or []):
        return []
    return [
        Ticket(
            number=int(found[1]),
            task=str(document["id"]),
            asked=int(found[2]),
            queues=frozenset(filter(None, found[3].split(","))),
        )
        for tag in document.get("tags") or []
        if (found := _TAG.fullmatch(str(tag)))
    ]


def is_first(own: Ticket, others: Iterable[Ticket], now_ms: int, bound_s: float) -> bool:
    """Whether no conflicting ticket is ahead of *own*. Pure."""
    return not any(
        each.task != own.task
        and (each.number, each.task) < (own.number, own.task)
        and each.queues & own.queues
        and now_ms - each.asked < bound_s * 1000
        for each in others
    )


class Admission:
    """One launch's way through the line.

    Args:
        client: asks the server.
        task: id of the launch's own task.
        queues: the queues that it will use.
        bound_s: after so long a ticket counts for lost.
    """

    def __init__(self, client: Client, task: str, queues: Collection[str], bound_s: float) -> None:
        self.client, self.bound_s = client, bound_s
        self.ticket = Ticket(number=_CHOOSING, task=task, asked=0, queues=frozenset(queues))

    def enter(self) -> None:
        """Take a ticket.

        Raises:
            ServerError: the server does not answer.
        """
        self._tickets()
        self._write(_CHOOSING, self._now_ms())
        latest = max((each.number for each in self._tickets()), default=0)
        self._write(max(self._now_ms(), latest + 1), self.ticket.asked)

    def is_my_turn(self) -> bool:
        """Whether the launch may go on, if it is safe.

        Raises:
            ServerError: the server does not answer.
        """
        return is_first(self.ticket, self._tickets(), self._now_ms(), self.bound_s)

    def _now_ms(self) -> int:
        moment = self.client.server_time
        return int(moment.timestamp() * 1000) if moment is not None else 0

    def _tickets(self) -> list[Ticket]:
        live = [Status.IN_PROGRESS, Status.STOPPED]
        rows = self.client.tasks(_FIELDS, status=live, system_tags=[_ON_A_DESK])
        return [ticket for row in rows for ticket in tickets_of(row, self._now_ms())]

    def _write(self, number: int, asked: int) -> None:
        task = self.ticket.task
        rows = self.client.tasks(_FIELDS, id=[task])
        tags = [str(tag) for row in rows for tag in row.get("tags") or []]
        kept = [tag for tag in tags if not tag.startswith(_PREFIX)]
        self.ticket = Ticket(number=number, task=task, asked=asked, queues=self.ticket.queues)
        self.client.call("tasks.update", {"task": task, "tags": [*kept, self.ticket.tag()]})
