"""A command under a memory limit, by the kernel's cgroup and by the watchdog."""

import os
import sys
import threading

import pytest
from tests.support.processes import PATIENCE_S, gone

from zenml_ext.local import process as local_process
from zenml_ext.memory import cgroup

pytestmark = pytest.mark.timeout(600)
EAT = "import sys; b = bytearray(int(sys.argv[1]) * 1024**2); b[::4096] = b'x' * len(b[::4096])"


def limited(*command, limit=None, kernel=True, stopping=None):
    """Run Python with *command*; a command that does not end by itself is stopped, and fails."""
    stopping, hung = stopping or threading.Event(), threading.Event()

    def give_up():
        hung.set()
        stopping.set()

    bound = threading.Timer(PATIENCE_S, give_up)
    bound.start()
    try:
        termination = local_process.run(
            [sys.executable, *map(str, command)],
            environment=dict(os.environ),
            limit=limit,
            stopping=stopping,
            grace_s=0.5,
            kernel=kernel,
        )
    finally:
        bound.cancel()
    assert not hung.is_set(), "the command did not end"
    return termination


@pytest.fixture(params=[True, False], ids=["kernel", "watchdog"])
def kernel(request):
    if request.param:
        group = cgroup.create(64 * 1024**2)
        if group is None:
            pytest.skip("no memory cgroup can be made here")
        group.close()
    return request.param


def test_a_limit_is_enforced(kernel):
    slow = "import time\nb = []\nwhile True: b.append(bytearray(b'x' * 1024**2)); time.sleep(0.002)"
    termination = limited("-c", slow, limit=100 * 1024**2, kernel=kernel)
    assert termination.oom_killed
    assert termination.exit_code == 137
    assert termination.peak >= 100 * 1024**2


def test_what_stays_below_the_limit_is_left_alone(kernel):
    termination = limited("-c", EAT, 50, limit=200 * 1024**2, kernel=kernel)
    assert (termination.exit_code, termination.oom_killed) == (0, False)


CHILDREN = """
import subprocess, sys, time
HOLD = "b = bytearray(60 * 1024**2); b[::4096] = b'x' * len(b[::4096]); input()"
EAT = "b = bytearray(400 * 1024**2); b[::4096] = b'x' * len(b[::4096]); input()"
def child(code):
    return subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
"""


def test_memory_of_children_counts(kernel):
    parent = CHILDREN + "run = [child(HOLD) for _ in range(3)]\nrun[0].wait()\nsys.exit(9)"
    termination = limited("-c", parent, limit=120 * 1024**2, kernel=kernel)
    assert termination.oom_killed
    assert termination.exit_code in {
        9,
        137,
    }  # 9: it was killed on v1, and its parent was faster than we


def test_a_command_never_lives_on_with_a_killed_child(kernel):
    """As a pool of workers does, or a loader of data: its parent would wait forever."""
    parent = CHILDREN + "child(EAT).wait()\ntime.sleep(600)"
    termination = limited("-c", parent, limit=120 * 1024**2, kernel=kernel)
    assert (termination.exit_code, termination.oom_killed) == (137, True)
    assert termination.peak >= 120 * 1024**2


@pytest.mark.parametrize("code", [0, 3])
def test_a_kill_is_told_also_where_the_command_came_to_its_own_end(monkeypatch, code):
    group = cgroup.create(64 * 1024**2)
    if group is None:
        pytest.skip("no memory cgroup can be made here")
    group.close()
    if group.version != 1:
        pytest.skip("cgroup v2 ends the whole group by itself")
    monkeypatch.setattr(local_process, "_KERNEL_PERIOD_S", 60)  # it ends before we look again
    parent = CHILDREN + f"child(EAT).wait()\nsys.exit({code})"
    termination = limited("-c", parent, limit=120 * 1024**2)
    assert (termination.exit_code, termination.oom_killed) == (code, True)


def test_an_exit_code_of_its_own_is_no_kill(kernel):
    termination = limited("-c", "raise SystemExit(3)", limit=100 * 1024**2, kernel=kernel)
    assert (termination.exit_code, termination.oom_killed) == (3, False)


def test_a_sigkill_of_other_origin_is_no_memory_kill(kernel):
    code = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    termination = limited("-c", code, limit=100 * 1024**2, kernel=kernel)
    assert (termination.exit_code, termination.oom_killed) == (137, False)


def test_what_ignores_sigterm_is_killed_after_the_grace(kernel, tmp_path):
    ready = tmp_path / "ready"
    code = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(600)"
    )
    stopping = threading.Event()

    def stop():
        while not ready.exists() and not stopping.wait(0.01):
            pass
        stopping.set()

    threading.Thread(target=stop).start()
    termination = limited("-c", code, limit=100 * 1024**2, kernel=kernel, stopping=stopping)
    assert termination.stopped
    assert termination.exit_code == 137


def test_nothing_of_a_command_outlives_it(kernel, tmp_path):
    pid = tmp_path / "pid"
    code = (
        "import subprocess, sys, pathlib\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(p.pid))"
    )
    limited("-c", code, limit=100 * 1024**2, kernel=kernel)
    assert gone(int(pid.read_text()))


def test_no_group_is_left_behind():
    left = [
        g for parent in cgroup._parents() for g in parent.path.glob(f"mlops-ext-{os.getpid()}-*")
    ]
    assert left == []


def test_a_step_opens_the_store_without_migrating_it_and_what_it_starts_does_not(
    monkeypatch, tmp_path
):
    """A check for migrations costs each step a third of a second; its orchestrator has made it."""
    entrypoint = pytest.importorskip("zenml_ext.local.entrypoint")
    from zenml_ext.local.orchestrator import LocalOomOrchestrator
    from zenml_ext.local.settings import LocalOomSettings

    name = "DISABLE_DATABASE_MIGRATION"
    monkeypatch.setattr("zenml.utils.source_utils._CUSTOM_SOURCE_ROOT", str(tmp_path))
    orchestrator = object.__new__(LocalOomOrchestrator)
    orchestrator._run_id = "run"
    environment = orchestrator._environment(LocalOomSettings(), {})
    assert environment[name] == "true"
    monkeypatch.setenv(name, environment[name])
    seen = []
    monkeypatch.setattr(entrypoint, "patch_own_process", lambda _: None)
    monkeypatch.setattr(
        entrypoint.ResumingEntrypointConfiguration,
        "_run_step",
        lambda self, **_: seen.append(os.environ[name]),
    )
    entrypoint.LocalEntrypoint._run_step(object.__new__(entrypoint.LocalEntrypoint), None, None)
    assert seen == ["false"]
