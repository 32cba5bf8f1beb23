"""A model server of the installed KServe as a process of its own, and load on it."""

import asyncio
import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version
from tests.support.servers.load import KINDS, Client, Load, get

SCRIPT = Path(__file__).with_name("model_server.py")
KSERVE = Version(version("kserve"))
OLD = Version("0.14.1") > KSERVE
HAS_WORKERS = not (Version("0.14") <= KSERVE < Version("0.15"))
BOOT_S = 120.0


def free_ports():
    """Two ports that nobody listens on, below the range that clients get theirs from."""
    start = 20000 + (os.getpid() * 37 + free_ports.calls * 2) % 9000
    free_ports.calls += 1
    for port in range(start, 32000, 2):
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for offset in (0, 1):
                sock = stack.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sock.bind(("0.0.0.0", port + offset))
            return port, port + 1
    raise RuntimeError("no free ports")


free_ports.calls = 0


@dataclass
class Server:
    """A running server script; use it as a context manager."""

    folder: Path
    way: str = "subclass"
    workers: int = 1
    flags: tuple = ()
    lame_duck_s: float | None = None
    drain_s: float | None = None
    prefix: tuple = ()
    script: Path = SCRIPT
    environment: dict = field(default_factory=dict)
    own_group: bool = True

    def __enter__(self):
        self.http_port, self.grpc_port = free_ports()
        self.events_file = self.folder / f"events-{self.http_port}.jsonl"
        self.log_file = self.folder / f"log-{self.http_port}.txt"
        settings = {"LAME_DUCK_S": self.lame_duck_s, "DRAIN_S": self.drain_s}
        given = {f"MLOPS_EXT_KSERVE_{k}": str(v) for k, v in settings.items() if v is not None}
        way = "bare" if self.way == "run" else self.way
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._prefix(), sys.executable, str(self.script),
                 "--http_port", str(self.http_port), "--grpc_port", str(self.grpc_port),
                 "--workers", str(self.workers), "--enable_latency_logging", "false", *self.flags],
                cwd=self.folder, stdin=subprocess.PIPE, stdout=log, stderr=log,
                env={**os.environ, "TEST_EVENTS": str(self.events_file), "TEST_WAY": way,
                     **given, **self.environment},
                start_new_session=self.own_group,
            )  # fmt: skip
        self.signalled_at = None
        return self

    def _prefix(self):
        if self.way != "run":
            return self.prefix
        return (
            *self.prefix,
            str(Path(sys.executable).with_name("mlops-ext")),
            "run",
            "--patch",
            "kserve",
            "--",
        )

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()

    @property
    def log(self):
        return self.log_file.read_text(errors="replace")

    def events(self, kind=None):
        if not self.events_file.exists():
            return []
        lines = self.events_file.read_text().splitlines()
        found = [json.loads(line) for line in lines]
        return [event for event in found if kind in (None, event["kind"])]

    def wait_for(self, kind, count=1, timeout=BOOT_S):
        end = time.monotonic() + timeout
        while len(self.events(kind)) < count:
            assert self.process.poll() is None, self.log[-3000:]
            assert time.monotonic() < end, f"no event {kind!r}\n{self.log[-3000:]}"
            time.sleep(0.005)

    async def begun(self, count=1):
        """Wait until *count* long requests are in a model's hands."""
        await asyncio.to_thread(self.wait_for, "begun", count)

    async def noticed(self):
        """Wait until the server has noticed a signal, and says no to probes."""
        end = time.monotonic() + BOOT_S
        while "shutdown: signal" not in self.log:
            assert time.monotonic() < end, self.log[-3000:]
            await asyncio.sleep(0.005)

    def client(self, **options):
        return Client(self.http_port, self.grpc_port, **options)

    async def up(self, kinds=("v1-new", "grpc-new")):
        """Wait until each of *kinds* is answered, and every worker serves."""
        client, end = self.client(), time.monotonic() + BOOT_S
        while True:
            assert self.process.poll() is None, self.log[-3000:]
            assert time.monotonic() < end, f"not up\n{self.log[-3000:]}"
            with contextlib.suppress(Exception):
                if all([await client.ask(kind) for kind in kinds]):
                    break
            await asyncio.sleep(0.05)
        if self.workers > 1 and self.way != "bare":
            while len(re.findall(r"Application startup complete", self.log)) < self.workers:
                assert time.monotonic() < end, f"workers not up\n{self.log[-3000:]}"
                await asyncio.sleep(0.05)

    def signal(self, number=signal.SIGTERM, group=False):
        self.signalled_at = self.signalled_at or time.monotonic()
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def wait(self, timeout=60):
        """The exit status; `seconds` is set to the time since the first signal."""
        status = self.process.wait(timeout)
        self.seconds = time.monotonic() - self.signalled_at
        return status

    async def ended(self, timeout=60):
        end = time.monotonic() + timeout
        while self.process.poll() is None:
            if time.monotonic() > end:
                return None
            await asyncio.sleep(0.01)
        self.seconds = time.monotonic() - self.signalled_at
        return self.process.returncode


def children_of(pid):
    """Processes that *pid* started, with theirs."""
    children = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found, queue = [], [pid]
    while queue:
        queue += (new := children.get(queue.pop(), []))
        found += new
    return found


def is_running(pid):
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def rolling_restart(
    server, *, model="m", rate=150, before=255, after_s=2.0, number=signal.SIGTERM, kinds=KINDS,
    pre_stop_s=0.0, instance=0.0,
):  # fmt: skip
    """Load that leaves *after_s* after its pod is deleted, when *before* requests were sent.

    The signal comes *pre_stop_s* later than that, as after a hook that sleeps. Returns the load, and
    what readiness said meanwhile.
    """
    client = server.client(model=model, instance=instance)
    load = Load(client, rate, kinds)
    probes, leaves_at = [], math.inf

    async def restart():
        nonlocal leaves_at
        while load.sent < before:  # noqa: ASYNC110  # the load has no event for it
            await asyncio.sleep(0.01)
        deleted_at = time.monotonic()
        leaves_at = deleted_at + after_s
        while (now := time.monotonic()) < max(leaves_at, deleted_at + pre_stop_s):
            if now >= deleted_at + pre_stop_s and server.signalled_at is None:
                server.signal(number)
            await asyncio.sleep(0.1)
            probes.append(await probe(server))
        if server.signalled_at is None:
            server.signal(number)

    await asyncio.gather(restart(), load.run(lambda: time.monotonic() > leaves_at))
    await client.close()
    return load, probes


async def probe(server):
    """Status of the readiness paths and of liveness; 0 where nothing answered."""
    paths = ("/v2/health/ready", "/v2/models/m/ready", "/v1/models/m", "/")
    found = []
    for path in paths:
        try:
            found.append((await get(server.http_port, path))[0])
        except OSError:
            found.append(0)
    return tuple(found)
