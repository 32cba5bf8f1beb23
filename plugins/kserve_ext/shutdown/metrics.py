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

        gauge, counter = GaugeMetricFamily, CounterMetricFamily
        drain, total = self.drain, self.drain.counts.total
        for kind, name, text, value in (
            (gauge, "draining", "1 from the first signal on, else 0", float(drain.ending)),
            (gauge, "in_flight", "Requests in flight, in all processes", total(IN_FLIGHT)),
            (gauge, "drain_seconds", "Seconds since the first signal", drain.seconds()),
            (counter, "drained", "Requests answered after the first signal", total(DRAINED)),
            (counter, "refused", "Requests refused at the deadline", total(REFUSED)),
            (counter, "lost", "Requests cut off without an answer", total(LOST)),
        ):
            yield kind(f"kserve_ext_{name}", text, value=value)


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
