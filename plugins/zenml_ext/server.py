"""Waits while ZenML's server is away, so that no step fails over a restart of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from mlops_ext.redaction import redacted
from mlops_ext.retry import doubling, retry

log = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 600.0
"""An upgrade of a server with its database takes minutes; ZenML's client gives up after 45 s."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 15.0
# A server that is busy; a database that is locked or away, whose classes are not installed
# everywhere: by name.
_PASSING = frozenset({"MaxConcurrentTasksError", "OperationalError", "TimeoutError"})


def may_pass(error: BaseException) -> bool:
    """Whether a store may do better when it is asked again later.

    True if the server is away, busy (429) or in trouble of its own (5xx, which ZenML's client
    raises as a plain RuntimeError), or its database is locked.
    """
    names = {one.__name__ for one in type(error).__mro__}
    is_own_trouble = type(error) is RuntimeError or not names.isdisjoint(_PASSING)
    return is_own_trouble or isinstance(error, OSError)  # as all of requests' are


def is_away(error: BaseException, method: str) -> bool:
    """Whether *error* says that the server could not be reached, and a second try does no harm.

    A request that only reads may be repeated; any other only if it was never sent.
    """
    from requests import exceptions
    from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

    if not isinstance(error, (exceptions.ConnectionError, exceptions.Timeout)):
        return False
    if method.upper() == "GET":
        return True
    reason: Any = getattr(error.args[0] if error.args else None, "reason", None)
    return isinstance(reason, (ConnectTimeoutError, NewConnectionError))


def when_there(call: Callable[[], T], method: str) -> T:
    """What *call*, a request with *method*, returns as soon as the server is there.

    Raises:
        Exception: what *call* raised last; `PATIENCE_S` seconds are over, or it was answered.
    """
    return retry(
        call,
        pauses=doubling(_FIRST_PAUSE_S, _LONGEST_PAUSE_S),
        is_transient=lambda error: is_away(error, method),
        on_retry=lambda error, pause_s: log.warning(
            "ZenML's server is away (%s); trying again in %.0f s", redacted(error), pause_s
        ),
        total_s=PATIENCE_S,
        sleep=time.sleep,
    )
