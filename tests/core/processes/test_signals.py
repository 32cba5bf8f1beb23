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


def test_the_signal_ends_pid_1_as_it_ends_others():
    script = (
        "import os, signal\n"
        "from mlops_ext.processes.signals import hear_as_pid_1\n"
        "os.getpid = lambda: 1\n"
        "hear_as_pid_1()\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False)
    assert done.returncode == 128 + signal.SIGTERM
