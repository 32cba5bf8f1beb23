"""The event loop's part of a shutdown: run the servers, take the steps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from kserve_ext._drain import Drain, log
from mlops_ext.shutdown import Step, Stopped

__all__ = ["supervise"]

SETTLE_S = 0.5
"""How long arriving requests put off the end of accepting at most."""
QUIET_S = 0.02
"""A pause without a new request that long means that the kernel's queues are empty."""

NEWBORN_S = 2.0
"""A server that nobody has asked anything since it listens ends at once, for so long: traffic is
sent only to who has answered a readiness probe. After it, somebody may count on us unasked."""
LOOK_S = 0.005
"""How often the start is looked at, in its first second only."""


async def supervise(
    coroutines: Iterable[Coroutine[Any, Any, Any]],
    drain: Drain,
    stop: Callable[[], Awaitable[None]],
) -> None:
    """Run *coroutines* until the drain of their servers is through, or one of them raises.

    Args:
        coroutines: the servers' and engines' own.
        drain: holds the parts that the coroutines serve.
        stop: stops models and clients.
    """
    drain.attach(asyncio.get_running_loop())
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    announcer = asyncio.create_task(_announce(drain))
    driver = asyncio.create_task(_drive(drain, stop))
    try:
        await _until(driver, tasks, drain)
    except BaseException:
        # Ports are let go, and gRPC is not left to its finalizer, which needs the loop.
        with contextlib.suppress(Exception):
            await asyncio.gather(*(part.finish() for part in drain.parts))
        raise
    finally:
        for task in (announcer, driver, *tasks):
            task.cancel()
        await asyncio.gather(announcer, driver, *tasks, return_exceptions=True)
        drain.detach()
        drain.finished.set()


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
            log.error("%s raised during the shutdown", task.get_name(), exc_info=error)
    # The servers' own coroutines end by themselves now: flush, lifespan, sockets.
    if pending:
        await asyncio.wait(pending, timeout=drain.state.limits.stop_s / 2)


async def _announce(drain: Drain) -> None:
    """Tell the drain when the server serves: somebody asked, or could have for a while."""
    while not drain.is_up():  # noqa: ASYNC110  # parts are of several kinds, some in processes
        await asyncio.sleep(LOOK_S)
    for notify in drain.on_up:
        notify()
    alone_until = drain.clock() + NEWBORN_S
    while not drain.has_clients() and drain.clock() < alone_until:  # noqa: ASYNC110  # as above
        await asyncio.sleep(LOOK_S)
    drain.began()


async def _drive(drain: Drain, stop: Callable[[], Awaitable[None]]) -> None:
    async for step in drain.steps():
        if step is Step.NOT_READY:
            _tell_not_ready(drain)
        elif step is Step.CLOSE:
            await _close(drain)
        elif step is Step.REFUSE:
            drain.refusing = True
            drain.refused += sum(part.refuse() for part in drain.parts)
            log.warning("drain: deadline passed, refused %d requests in flight", drain.refused)
        elif step is Step.STOP:
            await _stop(drain, stop)
        else:
            log.info("shutdown: done after %.2f s", drain.seconds())


def _tell_not_ready(drain: Drain) -> None:
    state = drain.state
    log.info(
        "shutdown: signal %d, not ready; accepting for %.1f s more, %d requests in flight",
        state.signal,
        max(0.0, min(state.close_at, state.kill_at) - drain.clock()),
        drain.in_flight(),
    )


async def _close(drain: Drain) -> None:
    """Take in what has reached the kernel already, then stop accepting everywhere together."""
    until = drain.clock() + SETTLE_S
    while drain.clock() < min(until, drain.state.refuse_at):
        before = sum(part.arrivals() for part in drain.parts)
        for _ in range(3):  # accept, read, parse: a turn of the loop each
            await asyncio.sleep(0)
        await asyncio.sleep(QUIET_S)
        if sum(part.arrivals() for part in drain.parts) == before:
            break
    log.info("drain: stop accepting, %d requests in flight", drain.in_flight())
    await asyncio.gather(*(part.close() for part in drain.parts))


async def _stop(drain: Drain, stop: Callable[[], Awaitable[None]]) -> None:
    log.info("stop: %d requests in flight, %d refused", drain.in_flight(), drain.refused)
    await stop()
    await asyncio.gather(*(part.finish() for part in drain.parts))
    drain.feed(Stopped(at=drain.clock()))
