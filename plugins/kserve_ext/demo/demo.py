"""The demo: a rolling restart of a real model server under load, bare and patched."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kserve_ext.demo.load import Client, Load, get
from mlops_ext.demo import Claim, Event, Progress

RATE = 100
BEFORE_S, AFTER_S = 1.0, 2.0
"""Load before the signal, and after it: the time that endpoints take to leave a balancer."""
LAME_DUCK_S = 2.5
"""Longer than AFTER_S, shorter than the default to keep the demo short."""
BOOT_S, EXIT_S = 90.0, 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Restart:
    """What a rolling restart came to."""

    sent: int
    lost: int
    stopped: int
    readiness: tuple[int, ...]

    @property
    def readiness_text(self) -> str:
        names = {0: "connection refused"}
        return ", ".join(names.get(code, f"HTTP {code}") for code in sorted(set(self.readiness)))


def demo() -> Iterator[Event]:
    """Restart a server under load, without and with the patch, and compare."""
    yield Progress(text="two model servers start: bare, and under mlops-ext run --patch kserve")
    before, after = asyncio.run(_both())
    yield Claim(
        what="requests lost in a rolling restart (REST v1, v2 and gRPC)",
        before=f"{before.lost} of {before.sent}",
        after=f"{after.lost} of {after.sent}",
        holds=before.lost > 0 and after.lost == 0,
    )
    yield Claim(
        what="requests answered by a model that had been stopped",
        before=str(before.stopped),
        after=str(after.stopped),
        holds=after.stopped == 0,
    )
    yield Claim(
        what="readiness after SIGTERM",
        before=before.readiness_text,
        after=after.readiness_text,
        holds=503 not in before.readiness and set(after.readiness) == {503},  # noqa: PLR2004  # HTTP's own
    )


def _start(http_port: int, grpc_port: int, *, patched: bool) -> subprocess.Popen[bytes]:
    flags = ["--http_port", str(http_port), "--grpc_port", str(grpc_port)]
    command = [sys.executable, "-m", "kserve_ext.demo.server", *flags]
    if patched:
        cli = Path(sys.executable).with_name("mlops-ext")
        settings = ["--lame_duck_s", str(LAME_DUCK_S)]
        command = [str(cli), "run", "--patch", "kserve", "--", *command, *settings]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL)


async def _both() -> tuple[_Restart, _Restart]:
    """The bare server's restart, then the patched one's; both start at once."""
    clients = [Client(_free_port(), _free_port()) for _ in range(2)]
    processes = [
        _start(client.http_port, client.grpc_port, patched=patched)
        for client, patched in zip(clients, (False, True), strict=True)
    ]
    try:
        for client, process in zip(clients, processes, strict=True):
            await _up(client, process)
        restarts = []
        for client, process in zip(clients, processes, strict=True):
            restarts.append(await _under_load(client, process))
            await client.close()
            await asyncio.to_thread(process.wait, EXIT_S)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return restarts[0], restarts[1]


async def _up(client: Client, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + BOOT_S
    while True:
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the server did not start (status {process.returncode})")
        with contextlib.suppress(Exception):  # not up yet
            if await client.ask("v1-new") and await client.ask("grpc-new"):
                return
        await asyncio.sleep(0.1)


async def _under_load(client: Client, process: subprocess.Popen[bytes]) -> _Restart:
    load = Load(client, RATE)
    begun = time.monotonic()
    readiness: list[int] = []

    async def restart() -> None:
        await asyncio.sleep(BEFORE_S)
        process.send_signal(signal.SIGTERM)
        for _ in range(5):
            await asyncio.sleep(AFTER_S / 6)
            try:
                readiness.append((await get(client.http_port, "/v2/health/ready"))[0])
            except OSError:
                readiness.append(0)

    def left() -> bool:
        return time.monotonic() > begun + BEFORE_S + AFTER_S

    await asyncio.gather(restart(), load.run(left))
    count = load.count()
    return _Restart(
        sent=len(load.answers),
        lost=count["lost"],
        stopped=count["stopped"],
        readiness=tuple(readiness),
    )


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
