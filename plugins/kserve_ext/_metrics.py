"""What Prometheus sees of a shutdown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from kserve_ext._drain import Drain

__all__ = ["exported"]


@contextlib.contextmanager
def exported(drain: Drain) -> Iterator[None]:
    """Show *drain* in ``/metrics`` while this lasts; read when scraped: requests pay nothing."""
    from prometheus_client import REGISTRY, Gauge

    gauges: list[Gauge] = []
    values: dict[str, tuple[str, Callable[[], float]]] = {
        "kserve_ext_draining": (
            "1 from the first signal on, else 0",
            lambda: float(drain.ending),
        ),
        "kserve_ext_in_flight": (
            "Requests accepted and not yet answered",
            lambda: float(drain.in_flight()),
        ),
        "kserve_ext_drain_seconds": ("Seconds since the first signal", drain.seconds),
    }
    for name, (text, read) in values.items():
        with contextlib.suppress(ValueError):  # a second server in this process: the first shows
            gauge = Gauge(name, text)
            gauge.set_function(read)
            gauges.append(gauge)
    try:
        yield
    finally:
        for gauge in gauges:
            REGISTRY.unregister(gauge)
