"""Machines for tests: namespaces as nodes, FUSE mounts as network file systems."""

# ruff: noqa: PTH110

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

HERE = Path(__file__).parent
UNSHARE = ["unshare", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
LOST = ["link", "rename", "unlink", "mkdir", "create"]


def need_namespaces():
    works = (
        shutil.which("unshare")
        and not subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode
    )
    if not works:
        pytest.skip("unsharing UTS and PID namespaces is not permitted here")


def need_fuse():
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse")
    code = "import mfusepy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mfusepy cannot be used: {done.stderr.strip().splitlines()[-1]}")


@dataclass
class Share:
    """A folder as one node sees it, and the faults on its way there."""

    path: Path
    plan: Path | None = None

    def inject(self, **plan):
        self.plan.write_text(json.dumps(plan))


@contextlib.contextmanager
def mount(backing, where, seconds, **plan):
    """A FUSE mount of *backing* at *where*, which caches for *seconds*."""
    where.mkdir()
    share = Share(where, where.with_suffix(".json"))
    share.inject(**plan)
    command = [sys.executable, HERE / "passthrough.py", backing, where, share.plan, str(seconds)]
    log = where.with_suffix(".log").open("wb")
    with subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            wait_for(lambda: os.path.ismount(where) or server.poll() is not None)
            if server.poll() is not None:
                pytest.skip("mounting is not permitted: " + where.with_suffix(".log").read_text())
            yield share
        finally:
            share.inject()
            subprocess.run(["umount", "-l", where], check=False)
            server.send_signal(signal.SIGTERM)
            log.close()


@contextlib.contextmanager
def shares(kind, base, count):
    """*count* views of one folder: the folder itself, or a FUSE mount for each."""
    backing = base / "backing"
    backing.mkdir()
    if kind == "ext4":
        yield [Share(backing) for _ in range(count)]
        return
    need_fuse()
    seconds = {"fuse": 0, "fuse-cached": 3}[kind]
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(mount(backing, base / f"mount{number}", seconds))
            for number in range(count)
        ]


def wait_for(condition, timeout_s=60):
    """Wait until *condition* holds; it is an event elsewhere, this only looks for it."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"did not happen within {timeout_s} s: {condition}")
        time.sleep(0.01)


@dataclass
class Node:
    """A machine: processes with a host name and process ids of their own."""

    name: str
    share: Share
    processes: list = field(default_factory=list)

    def start(self, code, *arguments, **environ):
        """Run Python *code* here; it sees the share's path as ``sys.argv[1]``."""
        script = f'hostname {self.name} && exec {sys.executable} -c "$CODE" "$@"'
        process = subprocess.Popen(
            [*UNSHARE, "sh", "-c", script, "sh", str(self.share.path), *map(str, arguments)],
            env={**os.environ, "CODE": textwrap.dedent(code), **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process


def finish(processes, timeout_s=120):
    """The outputs of all processes; a failure shows its error output."""
    outputs = []
    for process in processes:
        try:
            out, error = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            for other in processes:
                other.kill()
            raise
        assert process.returncode == 0, error
        outputs.append(out)
    return outputs
