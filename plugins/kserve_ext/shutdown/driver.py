"""The event loop's side of a shutdown: run the servers, take the steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from kserve_ext.shutdown.counts import DRAINED, IN_FLIGHT, LOST, REFUSED
from kserve_ext.shutdown.drain import Drain, describe, log
from mlops_ext.shutdown import Phase, Step, Stopped

SETTLE_S = 5.0
"""How long requests that are accepted and not seen yet put off the end of accepting at most.
An overloaded server needs seconds to take in what gRPC holds, and gRPC cancels what it holds."""

ENOUGH_LOOKS = 2
"""Looks in a row that must find nothing: what has just been accepted shows at the second."""
POLL_S = 0.005  # how often a server that is starting or about to close is looked at
FLUSH_S = 0.25
"""Time for the servers' own coroutines to end when all is stopped; an engine's may never."""


async def supervise(
    coroutines: Iterable[Awaitable[Any]],
    drain: Drain,
    stop: Callable[[], Awaitable[None]],
) -> None:
    """Run *coroutines* until the drain of their servers is through, or one of them raises.

    Args:
        coroutines: the servers' and engines' own.
        drain: holds the endpoints that the coroutines serve.
        stop: stops models and clients.
    """
    drain.attach(asyncio.get_running_loop())
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    announcer = asyncio.create_task(_announce(drain))
    driver = asyncio.create_task(_drive(drain, stop))
    try:
        await _until(driver, tasks, drain)
    except BaseException:
        # Ports are let go, and gRPC is not left to its finalizer, which needs the loop.
        with contextlib.suppress(Exception):
            await asyncio.gather(*(endpoint.finish() for endpoint in drain.endpoints))
        raise
    finally:
        for task in (announcer, driver, *tasks):
            task.cancel()
        await asyncio.gather(announcer, driver, *tasks, return_exceptions=True)
        drain.detach()
        drain.drained.set()


async def _until(driver: asyncio.Task[None], tasks: list[asyncio.Task[Any]], drain: Drain) -> None:
    """Wait for *driver*; raise what a task raises while the server is not ending."""
    pending: set[asyncio.Task[Any]] = {driver, *tasks}
    while driver in pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = None if task.cancelled() else task.exception()
            if error is None:
                continue
            if task is driver or not drain.ending:
                raise error
            log.error("a server raised during the shutdown: %s", describe(error))
    # The servers' own coroutines end by themselves now: flush, lifespan, sockets.
    if pending:
        await asyncio.wait(pending, timeout=FLUSH_S)


async def _announce(drain: Drain) -> None:
    """Say when the ports are open, and let the sequence know when a model is ready, too."""
    while not drain.is_up():  # noqa: ASYNC110  # uvicorn has no event for it
        await asyncio.sleep(POLL_S)
    for notify in drain.on_up:
        notify()
    while drain.state.phase is Phase.STARTING:
        drain.poll()
        await asyncio.sleep(POLL_S)


async def _drive(drain: Drain, stop: Callable[[], Awaitable[None]]) -> None:
    async for step in drain.steps():
        if step is Step.NOT_READY:
            due = drain.state.due
            log.info(
                "shutdown: signal %d, not ready; accepting for %.1f s more, %d requests in flight",
                drain.state.signal, max(0.0, min(due.close_at, due.kill_at) - drain.clock()),
                drain.counts.total(IN_FLIGHT),
            )  # fmt: skip
        elif step is Step.CLOSE:
            await _close(drain)
        elif step is Step.REFUSE:
            drain.refusing = True
            number = sum(endpoint.refuse() for endpoint in drain.endpoints)
            log.warning("drain: deadline passed, refused %d requests in flight", number)
        elif step is Step.STOP:
            await _stop(drain, stop)
        else:
            drained, refused, lost = (drain.counts.total(n) for n in (DRAINED, REFUSED, LOST))
            log.info(
                "shutdown: done after %.2f s; %d requests drained, %d refused, %d lost",
                drain.seconds(), drained, refused, lost,
            )  # fmt: skip


async def _close(drain: Drain) -> None:
    """Take in what the kernel and gRPC have accepted, then stop accepting everywhere together."""
    until, looks = min(drain.clock() + SETTLE_S, drain.state.due.refuse_at), 0
    while looks < ENOUGH_LOOKS and drain.clock() < until:
        for _ in range(3):  # accept, read, parse: a turn of the loop each
            await asyncio.sleep(0)
        looks += 1
        if any(endpoint.waiting() for endpoint in drain.endpoints):
            looks = 0
            await asyncio.sleep(POLL_S)
    log.info("drain: stop accepting, %d requests in flight", drain.counts.total(IN_FLIGHT))
    await asyncio.gather(*(endpoint.close() for endpoint in drain.endpoints))


async def _stop(drain: Drain, stop: Callable[[], Awaitable[None]]) -> None:
    log.info("stop: %d requests in flight", drain.counts.total(IN_FLIGHT))
    # The application's own clean-up comes first: it may still need the models. Workers have models
    # of their own, and stop them meanwhile.
    apart, own = ([e for e in drain.endpoints if e.apart is kind] for kind in (True, False))
    ending = asyncio.gather(*(endpoint.finish() for endpoint in apart))
    await asyncio.gather(*(endpoint.finish() for endpoint in own))
    await stop()
    await ending
    drain.feed(Stopped(at=drain.clock()))
