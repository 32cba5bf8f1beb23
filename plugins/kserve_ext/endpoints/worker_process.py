"""A worker process: one REST server that drains when its parent says so, or is gone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from typing import Any

from kserve_ext.endpoints.rest import RestEndpoint
from kserve_ext.endpoints.workers import DRAIN, FAILED, READY, Share
from kserve_ext.shutdown import signals
from kserve_ext.shutdown.console import SIGBREAK
from kserve_ext.shutdown.drain import Drain, describe, log
from kserve_ext.shutdown.driver import supervise
from kserve_ext.shutdown.metrics import exported, forget
from kserve_ext.shutdown.models import care_for, close_clients, stop_models
from mlops_ext.patching import Patch, PatchSet

ORPHAN_S = 1.2
"""What a worker whose parent was killed gets: requests in flight end within two seconds."""
POLL_S = 0.25  # how often a worker looks whether its parent is still the same


def run_spawned(
    rest_server: Any,
    log_config_file: str | None,
    sockets: list[Any],
    share: Share,
    interceptions: tuple[Patch, ...],
) -> None:
    """KServe 0.15 and later: serve *rest_server*, a ``RESTServer``, on the parent's sockets."""
    from kserve import logging  # type: ignore[import-untyped]  # ships no types

    PatchSet(interceptions).apply()
    logging.configure_logging(log_config_file)
    server = rest_server._server  # noqa: SLF001  # KServe has no other way to it
    repository = rest_server.dataplane.model_registry
    _serve(server, repository, share, lambda: rest_server.run(sockets=sockets))


def run_forked(
    rest_server: Any, repository: Any, sockets: list[Any], share: Share, foreign: list[Connection]
) -> None:
    """KServe 0.13: serve *rest_server*, a ``UvicornServer``, on the parent's sockets."""
    for other in foreign:  # the parent's ends: held here, they would hide its death
        other.close()
    # A worker that replaces a dead one is forked while gRPC runs in the parent. Its threads are not
    # here, so its objects must not be freed here: that would wait for them.
    gc.freeze()
    forget()
    import uvicorn

    server = uvicorn.Server(config=rest_server.cfg)
    _serve(server, repository, share, lambda: asyncio.run(server.serve(sockets=sockets)))


def _serve(server: Any, repository: Any, share: Share, run: Callable[[], None]) -> None:
    """Run one REST server; *run* must call ``server.serve``."""
    drain, pipe = Drain(settings=share.settings), share.pipe
    drain.counts = share.counts
    care_for(repository, drain)
    handlers = signals.SignalHandlers(drain)
    handlers.open()
    handlers.interrupting = False  # the parent decides, and it knows of us
    # A Ctrl-C reaches the whole group: the parent says what it means.
    handlers.ignored = frozenset({int(signal.SIGINT), SIGBREAK})
    threading.Thread(target=_listen, args=(pipe, drain), daemon=True).start()
    drain.on_up.append(lambda: pipe.send((READY,)))

    async def supervised(serving: Awaitable[None]) -> None:
        handlers.enter_loop()
        await supervise([serving], drain, lambda: close_clients(stop_models(repository)))
        handlers.leave_loop()

    drain.endpoints.append(RestEndpoint(server, drain, supervised))
    try:
        with exported(drain):
            run()
    except BaseException as error:
        with contextlib.suppress(OSError):
            pipe.send((FAILED, describe(error)))
        raise
    drain.released = True
    handlers.release()


def _listen(pipe: Connection, drain: Drain) -> None:
    """Act on the parent's words until it is gone.

    The pipe ends with the parent, unless another process that it forked holds a copy of its end.
    """
    parent = os.getppid()
    with contextlib.suppress(EOFError, OSError):
        while os.getppid() == parent:
            if not pipe.poll(POLL_S):
                continue
            kind, *details = pipe.recv()
            if kind != DRAIN:
                pipe.send((kind,))
            elif not drain.ending:  # the group's own signal may have been faster
                number, lame_duck, limit_s = details
                drain.signal(number, lame_duck=lame_duck, limit_s=limit_s)
    if not drain.ending:
        log.warning("the parent process is gone; ending")
    drain.signal(signal.SIGTERM, lame_duck=False, limit_s=ORPHAN_S)
