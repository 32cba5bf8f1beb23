"""The demo: a rolling restart of a real model server under load, bare and patched."""

from __future__ import annotations

import asyncio
import math
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx

from mlops_ext.demo import Claim, Event, Progress

RATE = 100
BEFORE_S, AFTER_S = 1.0, 2.0
"""Load before the signal, and after it: the time that endpoints take to leave a balancer."""
LAME_DUCK_S = 2.5  # longer than AFTER_S, shorter than the default to keep the demo short
BOOT_S, EXIT_S = 90.0, 20.0
PATH, BODY = "/v1/models/m:predict", {"instances": [0.0]}

_Restart = tuple[Counter[str], set[str]]
"""What a rolling restart came to: requests by outcome, and what readiness said."""


def demo() -> Iterator[Event]:
    """Restart a server under load, without and with the patch, and compare."""
    yield Progress(text="two model servers start: bare, and under mlops-ext run --patch kserve")
    (before, said), (after, fixed) = asyncio.run(_both())
    many, few = (each["lost"] + each["stopped"] for each in (before, after))
    yield Claim(
        what="requests lost, or answered by a stopped model, in a rolling restart",
        before=f"{many} of {before.total()}",
        after=f"{few} of {after.total()}",
        holds=many > 0 and few == 0,
    )
    yield Claim(
        what="readiness after SIGTERM",
        before=", ".join(sorted(said)),
        after=", ".join(sorted(fixed)),
        holds="HTTP 503" not in said and fixed == {"HTTP 503"},
    )


def _start(http_port: int, *, patched: bool) -> subprocess.Popen[bytes]:
    # The bare server leaves flags that it does not know alone.
    flags = ["--http_port", str(http_port), "--enable_grpc=false", f"--lame_duck_s={LAME_DUCK_S}"]
    command = [sys.executable, "-m", "kserve_ext.demo.server", *flags]
    if patched:
        cli = Path(sys.executable).with_name("mlops-ext")
        command = [str(cli), "run", "--patch", "kserve", "--", *command]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


async def _both() -> list[_Restart]:
    """The bare server's restart, then the patched one's; both start at once."""
    ports = [_free_port() for _ in range(2)]
    processes = [_start(port, patched=bool(number)) for number, port in enumerate(ports)]
    try:
        restarts = []
        for port, process in zip(ports, processes, strict=True):
            async with _client(port, kept=True) as kept, _client(port, kept=False) as new:
                await _up(new, process)
                restarts.append(await _under_load(kept, new, process))
            await asyncio.to_thread(process.wait, EXIT_S)
        return restarts
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _client(port: int, *, kept: bool) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None if kept else 0)
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=30, trust_env=False
    )


async def _up(client: httpx.AsyncClient, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + BOOT_S
    while await _readiness(client) != "HTTP 200":
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the server did not start (status {process.returncode})")
        await asyncio.sleep(0.1)


async def _readiness(client: httpx.AsyncClient) -> str:
    try:
        return f"HTTP {(await client.get('/v2/health/ready')).status_code}"
    except httpx.TransportError:
        return "connection refused"


async def _under_load(
    kept: httpx.AsyncClient, new: httpx.AsyncClient, process: subprocess.Popen[bytes]
) -> _Restart:
    tasks: list[asyncio.Task[str]] = []
    readiness: set[str] = set()
    begun, left_at = time.monotonic(), math.inf
    while (now := time.monotonic()) < left_at:
        if left_at == math.inf and now > begun + BEFORE_S:
            process.send_signal(signal.SIGTERM)
            left_at = now + AFTER_S
        tasks.append(asyncio.create_task(_ask((kept, new)[len(tasks) % 2])))
        if left_at < math.inf and len(tasks) % 40 == 0:
            readiness.add(await _readiness(new))
        await asyncio.sleep(max(0.0, begun + len(tasks) / RATE - time.monotonic()))
    return Counter(await asyncio.gather(*tasks)), readiness


async def _ask(client: httpx.AsyncClient) -> str:
    """What became of one request; the model of the demo says 0 once it has been stopped."""
    try:
        answer = await client.post(PATH, json=BODY)
        answer.raise_for_status()
    except httpx.HTTPError:
        return "lost"
    return "ok" if answer.json()["predictions"][0] else "stopped"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])
