"""What Prometheus sees of a shutdown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from kserve_ext.shutdown.drain import Drain

_shown: list[Any] = []
"""The gauges that stand in this process."""


@contextlib.contextmanager
def exported(drain: Drain) -> Iterator[None]:
    """Show *drain* in ``/metrics`` while this lasts; read when scraped: requests pay nothing."""
    from prometheus_client import Gauge

    gauges: list[Gauge] = []
    values: dict[str, tuple[str, Callable[[], float]]] = {
        "kserve_ext_draining": (
            "1 from the first signal on, else 0",
            lambda: float(drain.ending),
        ),
        "kserve_ext_in_flight": (
            "Requests accepted and not yet answered",
            lambda: float(drain.in_flight() - drain.scrapes),
        ),
        "kserve_ext_refused": (
            "Requests answered with an error at the deadline",
            lambda: float(drain.refused),
        ),
        "kserve_ext_drain_seconds": ("Seconds since the first signal", drain.seconds),
    }
    for name, (text, read) in values.items():
        with contextlib.suppress(ValueError):  # a second server in this process: the first shows
            gauge = Gauge(name, text)
            gauge.set_function(read)
            gauges.append(gauge)
    _shown.extend(gauges)
    try:
        yield
    finally:
        _withdraw(gauges)


def forget_parent() -> None:
    """In a fork: withdraw the gauges that it inherited, for they show its parent's shutdown."""
    _withdraw(_shown)


def _withdraw(gauges: list[Any]) -> None:
    from prometheus_client import REGISTRY

    for gauge in list(gauges):
        REGISTRY.unregister(gauge)
        _shown.remove(gauge)
