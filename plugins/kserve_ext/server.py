"""`GracefulModelServer`: KServe's ``ModelServer``, started and ended so that nothing is lost."""

from __future__ import annotations

from typing import Any

from kserve_ext.shutdown import signals

# Handlers stand before KServe is imported and models are loaded: seconds in which a signal to
# PID 1 would be lost.
signals.install_early_handlers()

from kserve import ModelServer  # type: ignore[import-untyped]  # noqa: E402  # after the handlers; ships no types

from kserve_ext import run  # noqa: E402
from kserve_ext.patches import extend_parser, intercepted  # noqa: E402
from kserve_ext.settings import NAMES, load  # noqa: E402

load()  # a wrong value is found now, not after models have been loaded for minutes

extend_parser()


class GracefulModelServer(ModelServer):  # type: ignore[misc]  # KServe ships no types
    """A drop-in ``ModelServer`` that drains before it stops.

    Takes what ``ModelServer`` takes, and:

    Args:
        lame_duck_s: seconds of normal service after readiness says no; default 5, none on Ctrl-C.
        drain_s: seconds for requests in flight after that; default 15.
        stop_s: seconds for models and engines to stop; default 8.
        kwargs: the other fields of `KServeSettings`, and what ``ModelServer`` takes.

    Each setting can also be given as a flag (``--drain_s``: the flags are added to KServe's
    parser), as ``MLOPS_EXT_KSERVE_DRAIN_S`` or in ``[tool.mlops-ext.kserve]``, in this order.
    KServe's ``grace_period`` has no effect.

    A subclass may override ``stop``, ``register_signal_handler`` and ``_serve``: they are called
    when KServe calls them, ``stop`` at the first signal, when readiness already says no.

    On a KServe release that is not supported it behaves as ``ModelServer`` and warns.

    Raises:
        SettingsError: a setting has a value that cannot be used.
    """

    def __init__(
        self,
        *args: Any,
        lame_duck_s: float | None = None,
        drain_s: float | None = None,
        stop_s: float | None = None,
        **kwargs: Any,
    ) -> None:
        given = {"lame_duck_s": lame_duck_s, "drain_s": drain_s, "stop_s": stop_s}
        given |= {name: kwargs.pop(name) for name in NAMES if name in kwargs}
        load(given)
        super().__init__(*args, **kwargs)
        self._graceful = given

    def start(self, models: Any) -> None:
        """Serve *models*; return when a signal or `shutdown` has drained the server.

        In a notebook it returns as soon as the server serves.
        """
        run.start(self, models, ModelServer.start, intercepted, self._graceful)

    def stop(self, sig: int | None = None) -> Any:
        """Begin the drain; returns at once (an awaitable before KServe 0.15)."""
        return run.stop(self, sig, ModelServer.stop)

    def shutdown(self, *, wait: bool = True, timeout_s: float | None = None) -> bool:
        """Drain as a SIGTERM does, from any thread; see `kserve_ext.shutdown`."""
        return run.shutdown(self, wait=wait, timeout_s=timeout_s)
