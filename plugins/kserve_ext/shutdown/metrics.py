"""What Prometheus sees of a shutdown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from kserve_ext.shutdown.counts import DRAINED, IN_FLIGHT, LOST, REFUSED
from kserve_ext.shutdown.drain import Drain

_shown: list[_Collector] = []
"""What stands in this process's registry; the first server's, if there are several."""


class _Collector:
    """Reads *drain* at each scrape: requests pay nothing for it."""

    def __init__(self, drain: Drain) -> None:
        self.drain = drain

    def collect(self) -> Iterator[Any]:
        """Prometheus' families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        drain, total = self.drain, self.drain.counts.total
        for name, text, value in (
            ("draining", "1 from the first signal on, else 0", float(drain.ending)),
            (
                "in_flight",
                "Requests accepted and not yet answered, in all processes",
                total(IN_FLIGHT),
            ),
            ("drain_seconds", "Seconds since the first signal", drain.seconds()),
        ):
            yield GaugeMetricFamily(f"kserve_ext_{name}", text, value=value)
        for name, text, column in (
            ("drained", "Requests answered after the first signal", DRAINED),
            ("refused", "Requests answered with an error at the deadline", REFUSED),
            ("lost", "Requests cut off without an answer", LOST),
        ):
            yield CounterMetricFamily(f"kserve_ext_{name}", text, value=total(column))


@contextlib.contextmanager
def exported(drain: Drain) -> Iterator[None]:
    """Show *drain* in ``/metrics`` while this lasts."""
    from prometheus_client import REGISTRY

    collector = _Collector(drain)
    if not _shown:
        REGISTRY.register(collector)
        _shown.append(collector)
    try:
        yield
    finally:
        if collector in _shown:
            forget()


def forget() -> None:
    """Withdraw the metrics; a fork does so too, because they are its parent's."""
    from prometheus_client import REGISTRY

    while _shown:
        REGISTRY.unregister(_shown.pop())
