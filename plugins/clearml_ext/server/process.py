"""What this process is to ClearML."""

from __future__ import annotations

__all__ = ["own_task_id"]


def own_task_id() -> str | None:
    """Id of the task that this process runs for an agent, or None."""
    from clearml.config import get_remote_task_id, running_remotely

    if not running_remotely():
        return None
    found = get_remote_task_id()
    return str(found) if found else None
