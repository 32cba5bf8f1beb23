"""The state that a pipeline's controller keeps: its steps, and which tasks it launched for them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clearml_ext.errors import PlanError

__all__ = ["Launched", "is_pipeline", "launched_by_controller", "launched_by_task", "steps_on_task"]

_RUN_MARK = "_pipeline_hash"
"""Runtime property by which the SDK knows that a controller has run before, and takes it up."""


def is_pipeline(document: Mapping[str, Any] | None) -> bool:
    """Whether a task is a pipeline's controller."""
    return document is not None and (
        "pipeline" in (document.get("system_tags") or []) and document.get("type") == "controller"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """Which of the tasks that name another as their parent were launched by it.

    Not all of them: the server gives a clone the parent of the task that it was cloned from, or
    that task itself. A clone of a pipeline from the web interface names the pipeline as its
    parent, and so does the clone of a step. They are runs of their own.

    Attributes:
        ids: the tasks that are known to be launched.
        names: names of the steps whose tasks are not known yet: a step's task has its name.
        everything: whether no clone can be told apart, and all of them count.
    """

    ids: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    everything: bool = False

    def includes(self, task: Mapping[str, Any]) -> bool:
        """Whether *task*, which names the other as its parent, was launched by it."""
        return self.everything or str(task["id"]) in self.ids or task.get("name") in self.names


def steps_on_task(document: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The steps that a controller's task carries, name → fields, as far as this run has come.

    A clone carries the state of the run it was cloned from, and starts from the beginning.

    Raises:
        PlanError: they cannot be read.
    """
    entry = (document.get("configuration") or {}).get("Pipeline") or {}
    text = entry.get("value") if isinstance(entry, dict) else None
    try:
        dag = json.loads(text) if text else {}
        steps = {str(name): dict(fields) for name, fields in dag.items()}
    except (ValueError, TypeError, AttributeError) as error:
        name = str(document.get("name") or document["id"])
        raise PlanError(name, "the steps on its task are not readable") from error
    if _RUN_MARK not in (document.get("runtime") or {}):
        for fields in steps.values():
            fields.update(executed=None, job_id=None)
    return steps


def launched_by_task(document: Mapping[str, Any]) -> Launched:
    """What the task *document*, as the server has it, launched."""
    if document and not is_pipeline(document):
        return Launched(everything=True)  # a step that calls components: it lists them nowhere
    try:
        steps = steps_on_task(document).items()
    except PlanError:
        return Launched()
    known = {name: each.get("job_id") or each.get("executed") for name, each in steps}
    return Launched(
        ids=frozenset(str(each) for each in known.values() if each),
        names=frozenset(name for name, each in steps if not known[name] and not each.get("draft")),
    )


def launched_by_controller(pipeline: Any) -> Launched:
    """What the ``PipelineController`` of this process launched."""
    nodes = list(pipeline._nodes.values())  # noqa: SLF001  # the DAG has no public name
    enqueued = [each for each in nodes if not getattr(each, "draft", False)]
    known = {each.name: each.job.task_id() if each.job else each.executed for each in enqueued}
    return Launched(
        ids=frozenset(str(each) for each in known.values() if each),
        names=frozenset(str(name) for name, each in known.items() if not each),
    )
