"""Steps that are forked from a process with ZenML imported: as separate as any other process."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.support.processes import gone

from zenml_ext.local import process, warm
from zenml_ext.local.warm import WarmServer
from zenml_ext.memory import cgroup

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="steps start cold here"),
]


ENTRYPOINT = "zenml.entrypoints.entrypoint"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Steps run what STEP_CODE holds, in place of ZenML's entrypoint."""
    home = tmp_path_factory.mktemp("stub")
    fake = home / "zenml"
    for package in (fake, fake / "entrypoints", fake / "integrations"):
        package.mkdir()
        (package / "__init__.py").touch()
    (fake / "entrypoints" / "entrypoint.py").write_text(
        "import os\nAT_IMPORT = os.environ.get('SEEN')\n"
        "BALLAST = b'x' * (100 << 20 if AT_IMPORT == 'ballast' else 0)\n"
        "def main():\n    exec(os.environ['MLOPS_EXT_CODE'], {})\n"
    )
    (fake / "integrations" / "registry.py").write_text(
        "class integration_registry:\n    @staticmethod\n    def activate_integrations(): pass\n"
    )
    paths = [str(home), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(autouse=True)
def no_server_of_others(monkeypatch):
    monkeypatch.setattr(WarmServer, "_current", None)
    yield
    if WarmServer._current is not None:
        WarmServer._current.close()


def run(environment, code, *, stopping=None, limit=None, **more):
    environment = {**environment, "MLOPS_EXT_CODE": code, **more}
    with Path(environment["OUT"]).open("wb") as output:
        termination = process.run(
            ["/none", "-m", ENTRYPOINT],
            environment=environment,
            limit=limit,
            stopping=stopping or threading.Event(),
            grace_s=0.5,
            output=output,
            warm=WarmServer.get(environment),
        )
    return termination, Path(environment["OUT"]).read_text()


@pytest.fixture
def env(environment, tmp_path):
    return {**environment, "OUT": str(tmp_path / "out")}


def test_a_step_is_a_process_of_its_own_and_the_next_one_knows_nothing_of_it(env):
    code = "import os, sys; print(os.getpid(), os.getsid(0), hasattr(sys, 'mark')); sys.mark = 1"
    seen = [run(env, code) for _ in range(2)]
    assert [termination.exit_code for termination, _ in seen] == [0, 0]
    first, second = (text.split() for _, text in seen)
    assert first[0] == first[1] != second[0]
    assert first[2] == second[2] == "False"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; sys.exit(3)", 3),
        ("raise ValueError('its own')", 1),
        ("import os; os._exit(137)", 137),
        ("import os; os.kill(os.getpid(), 9)", 137),
    ],
)
def test_every_way_to_end_is_told(env, code, expected):
    termination, text = run(env, code)
    assert termination.exit_code == expected
    assert ("its own" in text) == ("its own" in code)


def test_the_peak_has_what_was_imported_before_the_fork_too(env, tmp_path, monkeypatch):
    """A step that starts cold needs it: the next run's limit may be for one."""
    if (group := cgroup.create(None)) is None:
        pytest.skip("no memory cgroup can be made here")
    group.close()
    measure, looked = process._mapped_memory, tmp_path / "looked"

    def look(pid):
        found = measure(pid)
        looked.touch()
        return found

    monkeypatch.setattr(process, "_mapped_memory", look)
    code = f"import os, time\nwhile not os.path.exists({str(looked)!r}): time.sleep(0.01)"
    termination, _ = run(env, code, SEEN="ballast")
    assert termination.peak >= 100 << 20


def test_threads_are_waited_for_and_atexit_is_honoured(env):
    code = (
        "import atexit, threading, time\n"
        "atexit.register(print, 'at exit')\n"
        "threading.Thread(target=lambda: (time.sleep(0.3), print('thread'))).start()\n"
    )
    assert run(env, code)[1].split("\n")[:2] == ["thread", "at exit"]


@pytest.mark.integration
def test_what_modules_see_at_their_import_is_the_steps_own_environment(env):
    code = "from zenml.entrypoints import entrypoint; print(entrypoint.AT_IMPORT)"
    assert run(env, code, SEEN="one")[1] == "one\n"
    first = WarmServer._current
    assert run(env, code, SEEN="one", ZENML_STORE_URL="elsewhere")[1] == "one\n"
    assert WarmServer._current is first  # what is read later needs no new server
    assert run(env, code, SEEN="two")[1] == "two\n"
    assert WarmServer._current is not first


def test_modules_come_from_where_the_orchestrator_stands_and_not_the_server(
    env, tmp_path, monkeypatch
):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "placed.py").write_text(f"PLACE = {name!r}\n")
        monkeypatch.chdir(tmp_path / name)
        seen = run(env, "import placed; print(placed.PLACE)")[1]
        assert seen == f"{name}\n", "one server started both, in the first folder"


def test_a_step_that_is_stopped_is_killed_whole(env, tmp_path):
    code = (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{os.fork() or os.getpid()}}')\n"
        "while True: time.sleep(1)\n"
    )
    stopping = threading.Event()

    def stop():
        while not (tmp_path / "pids").exists():
            time.sleep(0.05)
        stopping.set()

    threading.Thread(target=stop).start()
    termination, _ = run(env, code, stopping=stopping)
    assert termination.stopped
    for pid in (tmp_path / "pids").read_text().split():
        assert gone(int(pid))


@pytest.mark.integration
def test_steps_end_with_the_server_gone_too(env):
    """A server that dies takes no step along, and the next one starts anew."""
    server = WarmServer.get(env)
    code = f"import os, signal, time; os.kill({server._process.pid}, signal.SIGKILL); print('on')"
    termination, text = run(env, code)
    assert (termination.exit_code, text) == (0, "on\n")
    server._process.wait()
    assert run(env, "print('again')")[1] == "again\n"


def test_where_the_server_cannot_be_reached_a_step_starts_cold(env, caplog):
    server = WarmServer.get(env)
    server.close()
    command = [sys.executable, "-c", "print('cold')", ENTRYPOINT]
    with Path(env["OUT"]).open("wb") as output:
        termination = process.run(
            command,
            environment=env,
            limit=None,
            stopping=threading.Event(),
            grace_s=1,
            output=output,
            warm=server,
        )
    assert termination.exit_code == 0
    assert Path(env["OUT"]).read_text() == "cold\n"
    assert "starts cold" in caplog.text


def test_the_server_ends_with_the_process_that_started_it(env):
    code = (
        "import os\n"
        "from zenml_ext.local.warm import WarmServer\n"
        "print(WarmServer.get(dict(os.environ))._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert gone(int(done.stdout))


def test_elsewhere_than_on_linux_there_is_none(monkeypatch):
    monkeypatch.setattr(warm.sys, "platform", "darwin")
    assert WarmServer.get({}) is None
