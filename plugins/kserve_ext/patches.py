"""What stands in the places of KServe's, uvicorn's and grpc's own objects.

`kserve_ext.plugin` lists each as data: where, for which versions, why. All of them ask whether the
object at hand belongs to a server in our care, and leave every other one as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from kserve_ext import releases, run
from kserve_ext.endpoints import asgi, grpc, rest
from kserve_ext.plugin import INTERCEPTIONS
from kserve_ext.settings import add_flags, load
from kserve_ext.shutdown import console, models, signals
from kserve_ext.shutdown.drain import log
from mlops_ext.errors import SettingsError
from mlops_ext.patching import PatchSet

Upstream = Callable[..., Any]

UVICORN_KEEP_ALIVE_S = 5  # uvicorn's default, which KServe before 0.18 leaves in place

_interceptions = PatchSet(INTERCEPTIONS)
_running = 0
_lock = threading.Lock()


@contextlib.contextmanager
def intercepted() -> Iterator[None]:
    """Apply the interceptions while a server runs; the last of several servers reverts them.

    Raises:
        PatchConflictError: what stands at a target is not what its patch was written for.
    """
    global _running
    with _lock:
        if not _running:
            _interceptions.apply()
        _running += 1
    try:
        with _pristine_app():
            yield
    finally:
        with _lock:
            _running -= 1
            if not _running:
                _interceptions.revert()


@contextlib.contextmanager
def _pristine_app() -> Iterator[None]:
    """Give KServe's application back as it was, so that a process can start a server again.

    It is one object for all servers of a process (0.14 and later), and each adds its routes.
    """
    app = getattr(importlib.import_module("kserve.model_server"), "app", None)
    if app is None:
        yield
        return
    routes, layers = list(app.router.routes), list(app.user_middleware)
    handlers, stack = dict(app.exception_handlers), app.middleware_stack
    try:
        yield
    finally:
        app.router.routes[:], app.user_middleware[:] = routes, layers
        app.exception_handlers.clear()
        app.exception_handlers.update(handlers)
        app.middleware_stack = stack


def start(original: Upstream) -> Upstream:
    """``ModelServer.start`` that drains; PID 1 ends on a signal from now on, while models load."""
    signals.install_early_handlers()
    try:
        load()
    except SettingsError as error:  # told now; `start` raises it, after the models have loaded
        log.error("%s", error)

    @functools.wraps(original)
    def graceful(self: Any, models: Any) -> None:
        if run.run_of(self) is not None:  # a GracefulModelServer calls its parent's
            original(self, models)
        else:
            run.start(self, models, original, intercepted)

    return graceful


def stop(original: Upstream) -> Upstream:
    """``ModelServer.stop`` that begins the drain."""

    @functools.wraps(original)
    def graceful(self: Any, sig: int | None = None) -> Any:
        return run.stop(self, sig, original)

    return graceful


def shutdown(_: object) -> Callable[..., bool]:
    """The method ``ModelServer.shutdown``, which KServe has not."""

    def shutdown(self: Any, *, wait: bool = True, timeout_s: float | None = None) -> bool:
        """Drain as a SIGTERM does, from any thread; see `kserve_ext.shutdown`."""
        return run.shutdown(self, wait=wait, timeout_s=timeout_s)

    return shutdown


def extend_parser() -> None:
    """Add our flags to KServe's own parser, when `GracefulModelServer` is imported.

    This is a hook, not a `Patch`: the user's module may hold the parser already. It only adds.
    """
    add_flags(importlib.import_module("kserve.model_server").parser)


def _waiting(act: Callable[..., Awaitable[None]]) -> Callable[[Upstream], Upstream]:
    """What replaces a method of ``ModelRepositoryExtension``: *act* decides when that is called."""

    def replace(original: Upstream) -> Upstream:
        @functools.wraps(original)
        async def graceful(self: Any, model_name: str) -> None:
            upstream = functools.partial(original, self, model_name)
            await act(self._model_registry, model_name, upstream)

        return graceful

    return replace


unload = _waiting(models.unload)
load_anew = _waiting(models.load_anew)


def parser(original: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """KServe's parser, with our flags added to a copy."""
    copy = argparse.ArgumentParser(
        parents=[original], add_help=False, formatter_class=original.formatter_class
    )
    add_flags(copy)
    return copy


def register_signal_handler(original: Upstream) -> Upstream:
    """``ModelServer.register_signal_handler``: ours stand already."""

    @functools.wraps(original)
    def graceful(self: Any) -> None:
        if run.run_of(self) is None:
            original(self)

    return graceful


def serve(original: Upstream) -> Upstream:
    """``ModelServer._serve``: what ``start`` awaits once it has made the servers."""

    @functools.wraps(original)
    def graceful(self: Any) -> Coroutine[Any, Any, None]:
        running = run.run_of(self)
        return original(self) if running is None else running.serve(releases.endpoints_of)

    return graceful


def uvicorn_serve(original: Upstream) -> Upstream:
    """``uvicorn.Server.serve`` without its signal handlers; only the drain ends it."""

    @functools.wraps(original)
    async def graceful(self: Any, sockets: list[Any] | None = None) -> None:
        endpoint = rest.endpoint_of(self)
        if endpoint is None:
            await original(self, sockets=sockets)
            return
        config = self.config
        if not config.loaded:
            config.load()
        if config.timeout_keep_alive == UVICORN_KEEP_ALIVE_S and endpoint.keep_alive_s:
            config.timeout_keep_alive = endpoint.keep_alive_s
        config.loaded_app = asgi.gated(config.loaded_app, endpoint.drain)
        self.lifespan = config.lifespan_class(config)
        await endpoint.around(endpoint.serve(sockets))

    return graceful


class _StandsFor:
    """A proxy for another object; a subclass overrides some of its methods."""

    def __init__(self, original: Any) -> None:
        self._original = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self._original, name)


class LegacyAsyncio(_StandsFor):
    """``asyncio`` as ``ModelServer.start`` before 0.14.1 sees it, which runs its own closures."""

    def run(self, serving: Coroutine[Any, Any, None]) -> None:
        """Run our servers in place of *serving*, if the server that starts is in our care."""
        running = run.starting.get()
        if running is not None:
            serving.close()
            serving = running.serve(releases.make_legacy)
        self._original.run(serving)


class GrpcAio(_StandsFor):
    """The module ``grpc.aio`` as KServe's gRPC server sees it: its servers are gated."""

    def server(self, *args: Any, **kwargs: Any) -> Any:
        """A server for the endpoint in whose context it is made, else grpc's own."""
        made = self._original.server(*args, **kwargs)
        endpoint = grpc.current.get()
        return made if endpoint is None else endpoint.adopt(made)


class CreateProcess(_StandsFor):
    """The system calls of ``multiprocessing`` on Windows: it passes no creation flags itself."""

    def CreateProcess(self, *arguments: Any) -> Any:  # noqa: N802  # Windows' name
        """As the system's; a worker of ours gets a process group of its own."""
        given = list(arguments)
        if console.makes_group.get():
            given[5] |= console.NEW_PROCESS_GROUP
        return self._original.CreateProcess(*given)
