"""The statuses of a task, in the server's words."""

from __future__ import annotations

import enum


class Status(str, enum.Enum):
    """What a task does, or came to; equal to the text that the server writes."""

    CREATED = "created"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    STOPPED = "stopped"
    COMPLETED = "completed"
    FAILED = "failed"
    PUBLISHED = "published"


# Those of a task that has not started, and of one that has not ended.
WAITING = frozenset({Status.CREATED, Status.QUEUED})
LIVE = WAITING | {Status.IN_PROGRESS}
