"""The errors of this extension."""

from __future__ import annotations

from http import HTTPStatus

from mlops_ext.errors import MlopsExtError


class ServerError(MlopsExtError):
    """The ClearML server could not be asked.

    Attributes:
        host: its address, without credentials.
        problem: what happened, in a few words.
        status: the HTTP status it answered with, or None if it did not answer.
    """

    def __init__(self, host: str, problem: str, advice: str, *, status: int | None = None) -> None:
        self.host, self.problem, self.status = host, problem, status
        super().__init__(f"ClearML server {host} {problem}; {advice}")

    @property
    def is_transient(self) -> bool:
        """Whether the same request may be answered later: not one that the server refuses."""
        return self.status is None or self.status >= HTTPStatus.INTERNAL_SERVER_ERROR


class PlanError(MlopsExtError):
    """What a pipeline will enqueue, and where, cannot be told before it runs.

    Attributes:
        pipeline: its name.
        problem: what cannot be told.
    """

    def __init__(self, pipeline: str, problem: str) -> None:
        self.pipeline, self.problem = pipeline, problem
        super().__init__(f"pipeline {pipeline!r} cannot be checked: {problem}")


class UndeclaredError(PlanError):
    """A task starts other tasks, holds its agent meanwhile, and does not say which tasks."""

    def __init__(self, pipeline: str) -> None:
        super().__init__(
            pipeline,
            "it starts other tasks, and which ones is known only when it runs; declare their queue"
            " with clearml_ext.waits_for(QUEUE), or with a tag waits-for:QUEUE",
        )
