"""Signals of PID 1 before a framework listens: heard, unless somebody listens already."""

import os
import signal
import subprocess
import sys

import pytest

from mlops_ext.processes.signals import hear_as_pid_1, is_stand_in

pytestmark = pytest.mark.skipif(os.name != "posix", reason="PID 1 is special on POSIX")


@pytest.fixture
def handlers():
    """The handlers of SIGTERM and SIGQUIT, put back afterwards."""
    numbers = (signal.SIGTERM, signal.SIGQUIT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_a_handler_that_somebody_has_set_stays(handlers, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGQUIT, signal.SIG_IGN)
    hear_as_pid_1()
    assert is_stand_in(signal.getsignal(signal.SIGTERM))
    assert signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN


def test_any_other_process_is_left_alone(handlers):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    hear_as_pid_1()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


AS_PID_1 = """
import os, signal, time
from mlops_ext.processes.signals import hear_as_pid_1
real = os.getpid
os.getpid = lambda: 1
hear_as_pid_1()
os.getpid = real
"""


def status_of(script):
    """How a process with *script* ends that hears signals as PID 1 does."""
    return subprocess.run([sys.executable, "-c", AS_PID_1 + script], check=False).returncode


def test_the_signal_ends_pid_1_as_it_ends_others():
    assert status_of("signal.raise_signal(signal.SIGTERM)") == 128 + signal.SIGTERM


def test_a_forked_child_of_pid_1_has_the_default_again():
    """It ends while it is in C code too, and by the signal itself."""
    script = """
child = os.fork()
if child == 0:
    sum(range(10 ** 9))  # one call of C that takes many seconds, and has an end
time.sleep(0.5)
os.kill(child, signal.SIGTERM)
_, status = os.waitpid(child, 0)
assert os.WTERMSIG(status) == signal.SIGTERM, status
assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
"""
    assert status_of(script) == 0


def test_a_child_keeps_a_handler_that_was_set_since():
    script = """
signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
child = os.fork()
if child == 0:
    signal.raise_signal(signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""
    assert status_of(script) == 0


@pytest.mark.needs_namespaces
def test_pid_1_itself_ends_by_the_signal(tmp_path):
    """A real PID 1, in a PID namespace of its own, for which the kernel drops the signal."""
    script = (
        "import os, signal, time; from mlops_ext.processes.signals import hear_as_pid_1;"
        "assert os.getpid() == 1; hear_as_pid_1(); os.kill(1, signal.SIGTERM); time.sleep(30)"
    )
    unshare = ["unshare", "--fork", "--pid", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not unshare a PID namespace here")
    done = subprocess.run([*unshare, sys.executable, "-c", script], check=False)
    assert done.returncode == 128 + signal.SIGTERM
