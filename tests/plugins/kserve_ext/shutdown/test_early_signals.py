"""Signals before KServe is imported, and to a server that nobody has asked anything yet."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.support.servers.harness import Server, children_of, get

pytestmark = pytest.mark.timeout(400)

RUN = (str(Path(sys.executable).with_name("mlops-ext")), "run", "--patch", "kserve", "--")
PID_1 = ("unshare", "--pid", "--fork", "--kill-child")

IMPORTING = """
import sys, time

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "kserve.model" and sys.argv[1] == "importing":
            print("importing", flush=True)
            time.sleep(float(sys.argv[2]))

print("began", flush=True)
if sys.argv[1] == "began":
    time.sleep(float(sys.argv[2]))
sys.meta_path.insert(0, Slow())
import kserve
print("imported", flush=True)
if sys.argv[1] == "imported":
    time.sleep(float(sys.argv[2]))
"""


def signalled(*prefix, at, pause_s=90):
    """Status and last word of a script that gets SIGTERM when it says *at*, and then pauses."""
    command = [*prefix, sys.executable, "-c", IMPORTING, at, str(pause_s)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    with process:
        words = []
        for line in process.stdout:
            words.append(line.strip())
            if words[-1] == at:
                script = process.pid
                if prefix[: len(PID_1)] == PID_1:
                    (script, *_) = children_of(process.pid)
                os.kill(script, signal.SIGTERM)
        return process.wait(timeout=100), words[-1]


@pytest.mark.parametrize("at", ["began", "importing", "imported"])
def test_before_a_server_starts_a_signal_is_python_s_own(at):
    assert signalled(*RUN, at=at) == (-signal.SIGTERM, at)


IMPORTED = """
import sys, time
{line}
try:
    print("up", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("KeyboardInterrupt", flush=True)
    raise
finally:
    time.sleep(1.5)
    print("cleaned up", flush=True)
"""


@pytest.mark.integration
@pytest.mark.parametrize("line", ["import kserve", "from kserve_ext import GracefulModelServer"])
def test_a_program_that_only_imports_has_its_ctrl_c(line):
    """Its clean-up takes longer than any deadline of ours for a server that starts."""
    prefix = RUN if line == "import kserve" else ()
    command = [*prefix, sys.executable, "-c", IMPORTED.format(line=line)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        words = process.stdout.read().split("\n")
        assert (process.wait(60), words[:2]) == (
            -signal.SIGINT, ["KeyboardInterrupt", "cleaned up"]
        )  # fmt: skip


@pytest.mark.integration
@pytest.mark.needs_namespaces
@pytest.mark.skipif(
    shutil.which("unshare") is None or not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="needs root and unshare",
)
def test_pid_1_hears_a_signal_before_and_during_the_import():
    """The kernel drops what has no handler: bare, the script goes on."""
    assert signalled(*PID_1, at="importing", pause_s=3) == (0, "imported")
    for at in ("began", "importing"):
        assert signalled(*PID_1, *RUN, at=at) == (128 + signal.SIGTERM, at)


def test_importing_kserve_changes_no_handler():
    code = (
        "import importlib.util, signal; found = importlib.util.find_spec('kserve') is not None;"
        "before = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL; import kserve;"
        "after = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL;"
        "print(found, before, after, type(kserve.__spec__.loader).__name__)"
    )
    done = subprocess.run(
        [*RUN, sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["True", "True", "True", "SourceFileLoader"]


def until_it_listens(server):
    """Wait without asking it anything."""
    end = time.monotonic() + 120
    while "Uvicorn running" not in server.log:
        assert server.process.poll() is None, server.log[-2000:]
        assert time.monotonic() < end, server.log[-2000:]
        time.sleep(0.005)


async def connected_only(folder, way):
    """What a connection hears that is opened before the signal and asks after it."""
    with Server(folder, way=way, lame_duck_s=4.0) as server:
        until_it_listens(server)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.http_port)
        await asyncio.sleep(0.2)
        server.signal()
        await asyncio.sleep(0.7)
        with contextlib.suppress(OSError):
            writer.write(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return answer, await server.ended()
        return b"", await server.ended()


@pytest.mark.integration
def test_a_balancer_that_has_just_connected_is_answered(tmp_path):
    answer, _ = asyncio.run(connected_only(tmp_path, "bare"))
    assert answer == b""
    answer, status = asyncio.run(connected_only(tmp_path, "subclass"))
    assert answer.startswith(b"HTTP/1.1 200")
    assert status == 0


@pytest.mark.slow
@pytest.mark.parametrize("way", ["bare", "subclass"])
def test_the_first_request_just_after_the_signal_is_answered(tmp_path, way):
    """Slow for its strict time: the request comes 50 ms after the signal."""

    async def scenario():
        with Server(tmp_path, way=way, lame_duck_s=1.0) as server:
            until_it_listens(server)
            server.signal()
            await asyncio.sleep(0.05)
            answers = []
            for path in ("/v2/health/live", "/v2/models/m", "/v2/health/live"):
                try:
                    answers.append((await get(server.http_port, path))[0])
                except (OSError, EOFError):
                    answers.append(0)
                await asyncio.sleep(0.25)
            return answers, await server.ended()

    answers, status = asyncio.run(scenario())
    if way == "bare":
        assert 0 in answers or 404 in answers
    else:
        assert (answers, status) == ([200, 200, 200], 0)
