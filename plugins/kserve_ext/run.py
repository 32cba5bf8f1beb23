"""One run of a model server: from ``start`` to the end of its drain."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import inspect
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import CodeType
from typing import Any

from kserve_ext import releases
from kserve_ext.plugin import SUPPORTED
from kserve_ext.settings import load
from kserve_ext.shutdown import signals
from kserve_ext.shutdown.console import console_events
from kserve_ext.shutdown.drain import Drain, describe, log
from kserve_ext.shutdown.driver import supervise
from kserve_ext.shutdown.metrics import exported
from kserve_ext.shutdown.models import care_for, close_clients, stop_models
from mlops_ext.errors import PatchConflictError, UnsupportedVersionError
from mlops_ext.shutdown import Signal
from mlops_ext.versions import in_range, installed_version

_runs: weakref.WeakKeyDictionary[Any, Run] = weakref.WeakKeyDictionary()
starting: ContextVar[Run | None] = ContextVar("starting", default=None)
"""The run whose server is being started in this context."""

STOPS = ("kserve.model_server", "kserve_ext.server")
"""Modules of classes whose ``stop`` needs no call: KServe's, which our patch wraps, and ours."""
NOTEBOOK_EXIT_S = 4.5  # Jupyter kills a kernel 5 s after it has asked it to end

Upstream = Callable[[Any, Any], None]
Hooks = Callable[[], AbstractContextManager[None]]


class Run:
    """A model server that runs under our care.

    Attributes:
        server: the ``ModelServer``.
        drain: its shutdown.
        thread: the thread that its loop runs in.
        stop_called: whether the server's ``stop`` was called, by us or by user code.
    """

    def __init__(self, server: Any, drain: Drain, handlers: signals.SignalHandlers | None) -> None:
        self.server, self.drain, self.handlers = server, drain, handlers
        self.thread, self.stop_called = threading.get_ident(), False
        self._exit: SystemExit | None = None
        care_for(server.registered_models, drain)

    async def serve(self, make: Callable[[Any, Drain], releases.Coroutines]) -> None:
        """Run the servers until the drain is through."""
        loop = asyncio.get_running_loop()
        stops: list[Future[None]] = []
        if self.handlers is not None:
            self.handlers.enter_loop()

        def call_own_stop(event: Signal) -> None:
            stop = self._call_own_stop(event.number or signal.SIGTERM)
            stops.append(asyncio.run_coroutine_threadsafe(stop, loop))

        self.drain.on_not_ready.append(call_own_stop)
        try:
            repository, servers = self.server.registered_models, make(self.server, self.drain)
            await supervise(servers, self.drain, lambda: close_clients(stop_models(repository)))
            if own := [asyncio.wrap_future(each) for each in stops]:  # may still be cleaning up
                await asyncio.wait(own, timeout=self.drain.settings.stop_s)
            if self._exit is not None:
                raise self._exit
        finally:
            self.drain.on_not_ready.remove(call_own_stop)
            if self.handlers is not None:
                self.handlers.leave_loop()

    async def _call_own_stop(self, number: int) -> None:
        """Call ``stop`` of the user's subclass as KServe's handler does: at the first signal."""
        classes = [each for each in type(self.server).__mro__ if each.__module__ in STOPS]
        known = [vars(each).get("stop") for each in classes]
        if self.stop_called or inspect.getattr_static(self.server, "stop") in known:
            return
        self.stop_called = True
        try:
            result = self.server.stop(number)
            if inspect.isawaitable(result):
                await result
        except SystemExit as error:  # the status that the user wants, once all is drained
            self._exit = error
        except Exception as error:  # noqa: BLE001  # a user's code: the drain goes on
            log.error("%s.stop raised: %s", type(self.server).__name__, describe(error))


def run_of(server: Any) -> Run | None:
    """The run of *server*, or None where it does not run under our care."""
    return _runs.get(server)


def start(
    server: Any,
    models: Any,
    upstream: Upstream,
    intercepted: Hooks,
    arguments: Mapping[str, object] | None = None,
) -> None:
    """Start *server*, and return when it has drained.

    In a notebook, where an event loop runs already, the server gets a thread of its own and this
    returns as soon as it serves.

    Args:
        server: a ``ModelServer``.
        models: what its ``start`` takes.
        upstream: KServe's own ``start``.
        intercepted: applies the interceptions of `kserve_ext.patches` while a server runs.
        arguments: settings given in code; None means not given.
    """
    if run_of(server) is not None:
        raise RuntimeError("this server runs already: call its shutdown() before start()")
    why_not, version = None, installed_version("kserve") or "of no known version"
    if not in_range(version, SUPPORTED):
        why_not = str(UnsupportedVersionError("kserve", version, SUPPORTED))
    elif _goes_without(type(server)):
        why_not = f"{type(server).__name__}._serve does not call super()._serve()"
    in_loop = asyncio._get_running_loop() is not None  # noqa: SLF001  # in asyncio's __all__
    drain = Drain(settings=load(arguments).value, may_kill=not in_loop and signals.is_main_thread())
    with contextlib.ExitStack() as hooks:
        hooks.callback(drain.finished.set)  # the last thing: it may be started again
        hooks.callback(_runs.pop, server, None)
        try:
            if why_not is None:
                hooks.enter_context(intercepted())
        except PatchConflictError as error:
            why_not = str(error)
        if why_not is not None:
            message = f"{why_not}; the server starts as KServe's own"
            warnings.warn(message, RuntimeWarning, stacklevel=3)
            upstream(server, models)
            return
        if in_loop:
            _start_beside(server, models, upstream, drain, hooks.pop_all())
        else:
            _start_here(server, models, upstream, drain)


def shutdown(server: Any, *, wait: bool = True, timeout_s: float | None = None) -> bool:
    """Drain *server* as a SIGTERM does; from any thread.

    Args:
        server: the server; one that does not run has nothing to drain.
        wait: whether to return only when it has stopped. A call from the server's own thread
            never waits.
        timeout_s: how long to wait at most; None for as long as its limits allow.

    Returns:
        whether it has stopped.
    """
    run = run_of(server)
    if run is None:
        return True
    run.drain.signal(0)
    if wait and threading.get_ident() != run.thread:
        run.drain.finished.wait(timeout_s)
    return run.drain.finished.is_set()


def stop(server: Any, sig: int | None, upstream: Callable[..., Any]) -> Any:
    """Begin the drain of *server*, or call KServe's own ``stop`` where it is not in our care."""
    run = run_of(server)
    if run is None:
        return upstream(server, sig)
    run.stop_called = True
    run.drain.signal(0)
    is_async = inspect.iscoroutinefunction(upstream)
    return asyncio.to_thread(run.drain.drained.wait) if is_async else None


def _goes_without(cls: type) -> bool:
    """Whether a user's class has a ``_serve``, and no method whose code gets to KServe's."""
    owners = [vars(each) for each in cls.__mro__ if "_serve" in vars(each)]
    for own in owners[:-1]:  # the last is KServe's
        codes = {
            name: getattr(inspect.unwrap(each), "__code__", None) for name, each in own.items()
        }
        serve = codes["_serve"]
        # What a decorator has made calls something that is not seen here.
        is_plain = serve is not None and set(serve.co_freevars) <= {"__class__"}
        if is_plain and not any(code and _mentions_serve(code) for code in codes.values()):
            return True
    return False


def _mentions_serve(code: CodeType) -> bool:
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return "_serve" in (*code.co_names, *code.co_consts) or any(map(_mentions_serve, inner))


def _start_beside(
    server: Any, models: Any, upstream: Upstream, drain: Drain, hooks: contextlib.ExitStack
) -> None:
    """Start *server* in a thread; return when it serves, raise what it raised before."""
    failure: list[BaseException] = []

    def main() -> None:
        try:
            with hooks:
                _start_here(server, models, upstream, drain)
        except BaseException as error:  # noqa: BLE001  # handed to the caller
            failure.append(error)

    up = threading.Event()
    drain.on_up.append(up.set)
    # A daemon: a program that forgets the server still ends, and drains it then.
    thread = threading.Thread(target=main, name="kserve-ext-server", daemon=True)
    thread.start()
    _at_exit(drain)
    while not up.wait(0.05) and thread.is_alive():
        pass
    if failure:
        raise failure[0]


def _at_exit(drain: Drain) -> None:
    """Drain when the interpreter ends, and wait for it; a kernel is killed after 5 s."""
    limit_s = NOTEBOOK_EXIT_S if signals.is_interactive() else None

    def end() -> None:
        if not drain.finished.is_set():
            drain.signal(0, lame_duck=False, limit_s=limit_s)
            drain.finished.wait(drain.state.limits.total_s)

    # Before executors refuse new work, which comes before what `atexit` calls.
    register = getattr(threading, "_register_atexit", atexit.register)
    register(end)


def _start_here(server: Any, models: Any, upstream: Upstream, drain: Drain) -> None:
    handlers = signals.SignalHandlers(drain) if signals.is_main_thread() else None
    if handlers is not None:
        handlers.open()
    else:
        log.warning(
            "the server does not run in the main thread: signals are left alone;"
            " call its shutdown() to drain it"
        )
    _runs[server] = run = Run(server, drain, handlers)
    starting.set(run)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(exported(drain))
            stack.enter_context(console_events(drain))
            # KServe asks this thread for a loop before it starts one. There is none off the main
            # thread, nor after an earlier start, whose loop was closed.
            loop = asyncio.new_event_loop()
            stack.callback(loop.close)
            asyncio.set_event_loop(loop)
            stack.callback(asyncio.set_event_loop, None)
            upstream(server, models)
    finally:
        starting.set(None)
        drain.released = True
        drain.drained.set()
        getattr(server, "servers", []).clear()  # awaited coroutines: start() may be called again
        if handlers is not None:
            handlers.release()
