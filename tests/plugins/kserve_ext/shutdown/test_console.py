"""Windows: the loop without signal support simulated here, the console's events under Wine."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tests.support.servers.harness import OLD, free_ports

from kserve_ext.shutdown import console
from kserve_ext.shutdown.drain import Drain
from mlops_ext.shutdown import Phase, Started

ROOT = Path(__file__).resolve().parents[4]

pytestmark = pytest.mark.timeout(600)

SIMULATED = """
import asyncio, os, signal, socket, sys, threading, time

class Loop(asyncio.SelectorEventLoop):
    def add_signal_handler(self, sig, callback, *args):
        raise NotImplementedError  # as every loop on Windows

class Policy(asyncio.DefaultEventLoopPolicy):
    _loop_factory = Loop

asyncio.set_event_loop_policy(Policy())
from kserve import Model{more}
model = Model("m"); model.load()
server = {server}(http_port={http_port}, grpc_port={grpc_port})
def end():
    while socket.socket().connect_ex(("127.0.0.1", {http_port})):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=end, daemon=True).start()
server.start([model])
print("drained")
"""


def simulated(folder, server, more):
    http_port, grpc_port = free_ports()
    code = SIMULATED.format(server=server, more=more, http_port=http_port, grpc_port=grpc_port)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(not OLD, reason="0.14.1 and later use signal.signal")
def test_bare_server_needs_a_loop_with_signals(tmp_path):
    done = simulated(tmp_path, "ModelServer", ", ModelServer")
    assert "NotImplementedError" in done.stderr


def test_a_loop_without_signals_is_enough(tmp_path):
    done = simulated(
        tmp_path, "GracefulModelServer", "\nfrom kserve_ext import GracefulModelServer"
    )
    assert "drained" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("event", [console.CTRL_CLOSE, console.CTRL_LOGOFF, console.CTRL_SHUTDOWN])
def test_a_closing_console_drains_within_the_limit_of_windows(event):
    now = [100.0]
    drain = Drain(may_kill=False, clock=lambda: now[0])
    drain.feed(Started(at=now[0]))
    drain.finished.set()  # the handler must not wait here for what nobody drives
    assert console.handler_of(drain)(event) == 1
    assert drain.ending
    assert drain.state.phase is Phase.LAME_DUCK
    assert drain.state.due.close_at == 100.0, "nobody balances load to a console"
    assert drain.state.due.kill_at <= 100.0 + 4.5


@pytest.mark.parametrize("event", [0, 1])
def test_ctrl_c_and_ctrl_break_are_left_to_python(event):
    drain = Drain(may_kill=False)
    assert console.handler_of(drain)(event) == 0
    assert not drain.ending


CONSOLE = """
import ctypes, os, signal, subprocess, sys, threading, time
from kserve_ext.settings import KServeSettings
from kserve_ext.shutdown.console import console_events
from kserve_ext.shutdown.drain import Drain
from kserve_ext.shutdown.signals import SignalHandlers
from mlops_ext.shutdown import Started, Stopped, Tick

kernel = ctypes.WinDLL("kernel32", use_last_error=True)
drain = Drain(settings=KServeSettings(lame_duck_s=0, drain_s=1), may_kill=False)
{handlers}
drain.feed(Started(at=drain.clock()))

def drive():
    while not drain.finished.is_set():
        time.sleep(0.02)
        drain.feed(Tick(at=drain.clock(), in_flight=0))
        if drain.state.phase.name == "STOPPING":
            drain.feed(Stopped(at=drain.clock()))
            print("drained", drain.state.signal, flush=True)
            drain.finished.set()

threading.Thread(target=drive, daemon=True).start()
with console_events(drain):
    print("up", flush=True)
    {act}
    assert drain.finished.wait(20)
"""


def in_console(wine_python, handlers, act):
    code = CONSOLE.format(handlers=handlers, act=act)
    packages = Path(pytest.__file__).parents[1]
    done = wine_python.run(
        "-c",
        textwrap.dedent(code),
        pythonpath=[ROOT / "core", ROOT / "plugins", packages],
        check=False,
    )
    return done.stdout.split(), done.stderr


@pytest.mark.slow
@pytest.mark.needs_wine
class TestUnderWine:
    """CPython for Windows 3.13 under Debian's Wine; nothing of this ran on Windows itself."""

    def test_sigbreak_drains(self, wine_python):
        handlers = (
            "handlers = SignalHandlers(drain); handlers.open(); handlers.interrupting = False"
        )
        out, err = in_console(wine_python, handlers, "signal.raise_signal(signal.SIGBREAK)")
        assert out == ["up", "drained", "21"], err

    def test_ctrl_c_drains(self, wine_python):
        handlers = (
            "handlers = SignalHandlers(drain); handlers.open(); handlers.interrupting = False"
        )
        out, err = in_console(wine_python, handlers, "signal.raise_signal(signal.SIGINT)")
        assert out == ["up", "drained", "2"], err

    def test_the_system_takes_the_handler_and_gives_it_back(self, wine_python):
        out, err = in_console(wine_python, "", "drain.signal(21, lame_duck=False, limit_s=4.5)")
        assert out == ["up", "drained", "21"], err

    def test_workers_start_in_a_group_of_their_own(self, wine_python):
        code = f"""
        import sys
        sys.path[:0] = {[wine_python.path(ROOT / p) for p in ("core", "plugins")]!r}
        import _winapi
        from multiprocessing import popen_spawn_win32
        from kserve_ext.plugin import INTERCEPTIONS
        from kserve_ext.shutdown.console import makes_group
        from mlops_ext.patching import PatchSet
        (patch,) = (p for p in INTERCEPTIONS if p.id == "kserve.create-process")
        with PatchSet([patch], versions=lambda _: "0.21"):
            makes_group.set(True)
            handles = popen_spawn_win32._winapi.CreateProcess(
                sys.executable, f'"{{sys.executable}}" -c "print(7)"', None, None, False, 0, None, None, None)
        assert popen_spawn_win32._winapi is _winapi
        _winapi.WaitForSingleObject(handles[0], 60000)
        print(_winapi.GetExitCodeProcess(handles[0]))
        """
        done = wine_python.run("-c", textwrap.dedent(code), check=False)
        assert done.stdout.split()[-1] == "0", done.stdout + done.stderr
