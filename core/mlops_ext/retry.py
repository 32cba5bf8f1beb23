"""Try again while an error is transient."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def doubling(first_s: float, longest_s: float) -> Iterator[float]:
    """Pauses in seconds: *first_s*, then twice as long each time, up to *longest_s*; no end."""
    for exponent in itertools.count():
        yield min(first_s * 2.0 ** min(exponent, 60), longest_s)


def retry(
    call: Callable[[], T],
    *,
    pauses: Iterable[float],
    is_transient: Callable[[Exception], bool],
    on_retry: Callable[[Exception, float], None] = lambda _error, _pause_s: None,
    total_s: float = float("inf"),
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """What *call* returns, tried again while its error is transient.

    The last error is raised as it is.

    Args:
        call: what may fail.
        pauses: seconds between the tries; when they end, the next try is the last.
        is_transient: True for an error that may pass.
        on_retry: told of the error and the pause, before the pause.
        total_s: after so many seconds no further try is made.
        sleep: waits.
        clock: a monotonic clock that goes with *sleep*.
    """
    begin = clock()
    for pause_s in pauses:
        try:
            return call()
        except Exception as error:
            if not is_transient(error) or clock() - begin > total_s:
                raise
            on_retry(error, pause_s)
            sleep(pause_s)
    return call()
