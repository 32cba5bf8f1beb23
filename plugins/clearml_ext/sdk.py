"""What is used of the ClearML SDK beyond its documented names: all of it, and only here.

The SDK has no public way to read a pipeline's steps, nor to learn where a process runs. These
names have been the same from 1.14 to 2.1; where one changes, this file is what has to change.
"""

# ruff: noqa: SLF001  # private names are what this file is for

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

# Runtime property of a controller's task: JSON of old queue → new queue of its steps.
_QUEUES_KEY = "mlops_ext_queues"
# Runtime property of a controller's task: its own id, once its pipeline was accepted.
_ACCEPTED_KEY = "mlops_ext_accepted"


def connection() -> dict[str, Any]:
    """Read the server and the credentials of this process, as arguments of `Client`."""
    from clearml.backend_api.session.defs import ENV_ACCESS_KEY, ENV_AUTH_TOKEN, ENV_SECRET_KEY
    from clearml.backend_api.session.session import Session
    from clearml.backend_interface.base import InterfaceBase
    from clearml.config import config_obj

    session: Any = getattr(InterfaceBase, "_default_session", None)
    given = str(ENV_AUTH_TOKEN.get() or "")
    token: Callable[[], str] | None = None
    if session is not None:
        token = lambda: str(session.token)  # noqa: E731  # the session renews it
    elif given:
        token = lambda: given  # noqa: E731
    key = ENV_ACCESS_KEY.get() or config_obj.get("api.credentials.access_key", "")
    secret = ENV_SECRET_KEY.get() or config_obj.get("api.credentials.secret_key", "")
    return {
        "host": str(Session.get_api_server_host() if session is None else session.host),
        "verify": config_obj.get("api.verify_certificate", True),
        "token": token,
        "key": "" if token else str(key or ""),
        "secret": "" if token else str(secret or ""),
    }


def own_task_id() -> str | None:
    """Id of the task that this process runs for an agent, or None."""
    from clearml.config import get_remote_task_id, running_remotely

    found = get_remote_task_id() if running_remotely() else None
    return str(found) if found else None


def task_of(pipeline: Any) -> Any | None:
    """The controller's ``Task`` of a ``PipelineController``, or None if it has none."""
    return getattr(pipeline, "_task", None)


def is_own_task(pipeline: Any) -> bool:
    """Whether the task of *pipeline* was created by ``PipelineController`` itself.

    A pipeline that finds a task in its process, such as the experiment it is part of, takes that
    one instead. The controller puts its system tag only on a task that it created.
    """
    task = task_of(pipeline)
    return task is not None and pipeline._tag in (task.get_system_tags() or [])


def is_built_in(task: Any) -> bool:
    """Whether a pipeline of this process was built in *task*, whatever type it has."""
    return "Pipeline" in (getattr(task.data, "configuration", None) or {})


def mark_accepted(task: Any) -> None:
    """Note on *task* that its pipeline was checked together with what others ran then."""
    if task is not None:
        task._set_runtime_properties({_ACCEPTED_KEY: str(task.id)})


def was_accepted(task: Any) -> bool:
    """Whether `mark_accepted` marked this very task; a clone of it was not accepted."""
    try:
        return bool(task._get_runtime_properties().get(_ACCEPTED_KEY) == str(task.id))
    except AttributeError:
        return False


def process_age_s() -> float:
    """Seconds since this process started."""
    import time

    import psutil

    return max(0.0, time.time() - psutil.Process().create_time())


def nodes_of(pipeline: Any) -> list[Any]:
    """The steps of *pipeline*."""
    return list(pipeline._nodes.values())


def steps_of(pipeline: Any) -> dict[str, dict[str, Any]]:
    """The steps of *pipeline* by name, with the fields that its task carries on the server."""
    return {
        str(node.name): {
            "queue": node.queue or getattr(pipeline, "_default_execution_queue", None),
            "parents": node.parents,
            "base_task_id": node.base_task_id,
            "job_id": job_id_of(node),
            "executed": node.executed,
            "draft": getattr(node, "draft", False),
        }
        for node in nodes_of(pipeline)
    }


def job_id_of(node: Any) -> str | None:
    """Id of the task that was launched for the step *node*, or None."""
    return str(node.job.task_id()) if node.job else None


def start_of_job(node: Any) -> Any | None:
    """Ask the server when the step *node* began to run; None if it has not.

    The SDK keeps what it read when it made the task, and at that time there was no start.
    """
    task = getattr(node.job, "task", None)
    if task is None:
        return None
    task.reload()
    return getattr(task.data, "started", None)


def runs_steps_here(pipeline: Any) -> bool:
    """Whether steps are run as sub-processes, and no queue is waited in."""
    return "Local" in getattr(pipeline._clearml_job_class, "__name__", "")


def stop_event_of(pipeline: Any) -> Any:
    """The event that is set when the controller's loop ends."""
    return pipeline._stop_event


def current_pipeline() -> Any | None:
    """The decorated pipeline of this process, or None."""
    from clearml import PipelineDecorator

    return getattr(PipelineDecorator, "_singleton", None)


def components() -> list[dict[str, Any]]:
    """The arguments of all components decorated so far; changing them changes the components."""
    from clearml import PipelineDecorator

    return list(PipelineDecorator._added_decorator)


def components_queue() -> str | None:
    """Where components go that name no queue."""
    from clearml import PipelineDecorator

    found: str | None = PipelineDecorator._default_execution_queue
    return found


def components_run_here() -> bool:
    """Whether components run as sub-processes or plain functions, for debugging."""
    from clearml import PipelineDecorator

    return bool(PipelineDecorator._debug_execute_step_process)


def reroute(pipeline: Any, queues: Mapping[str, str]) -> None:
    """Send the steps of *pipeline* from the old *queues* to the new ones, on later runs too."""
    if not queues:
        return
    default = getattr(pipeline, "_default_execution_queue", None)
    if default is not None and default in queues:
        pipeline.set_default_execution_queue(queues[default])
    for node in nodes_of(pipeline):
        node.queue = queues.get(node.queue, node.queue)
    task = task_of(pipeline)
    if task is not None:
        task._set_runtime_properties({_QUEUES_KEY: json.dumps(dict(queues))})


def remembered_queues(pipeline: Any) -> dict[str, str]:
    """Old queue → new queue, as `reroute` left them on the controller's task."""
    try:
        found = json.loads(pipeline._task._get_runtime_properties().get(_QUEUES_KEY) or "{}")
        return {str(old): str(new) for old, new in found.items()}
    except (AttributeError, ValueError, TypeError):
        return {}
