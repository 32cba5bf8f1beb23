"""Requests that the API server gets, and what goes wrong with them on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Call:
    """One request the API server has answered."""

    method: str
    plural: str
    name: str
    sub: str
    user: str
    at: float
    code: int = 0

    @property
    def verb(self) -> str:
        if self.method == "GET":
            return "get" if self.name else "list"
        return {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete"}[
            self.method
        ]

    @property
    def resource(self) -> str:
        return f"{self.plural}/{self.sub}" if self.sub else self.plural


@dataclass(kw_only=True)
class Fault:
    """What goes wrong: `applies` picks the calls, `times` how often."""

    code: int
    reason: str = "InternalError"
    message: str = "injected"
    applies: Callable[[Call], bool] = field(default=lambda _: True)
    times: int = 1
    after: bool = False
    """The request is carried out first, and its answer lost."""
    hang_s: float = 0
