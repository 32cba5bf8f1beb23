"""Who a process is, and what can be said of its life."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_ext.processes import identity


@pytest.mark.skipif(os.name != "posix", reason="processes of other users are POSIX")
def test_a_process_that_may_not_be_signalled_is_alive(monkeypatch):
    """As root may signal every process, the refusal is made."""

    def refuse(_pid, _number):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    assert identity.is_alive(os.getppid())


def test_the_start_time_tells_two_processes_apart_and_is_the_same_each_time():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        first = identity.start_of(child.pid)
        assert first == identity.start_of(child.pid)
        assert first != identity.start_of(os.getpid())
        child.communicate()
    assert identity.start_of(child.pid) is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_stopped_process_is_told_from_a_running_one():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert not identity.is_stopped(child.pid)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        assert identity.is_stopped(child.pid)
        assert identity.is_alive(child.pid)
        child.send_signal(signal.SIGCONT)
        child.communicate()
    assert not identity.is_stopped(child.pid)


@pytest.mark.parametrize("pid", [0, -1])
def test_an_identity_has_a_process_id(pid):
    with pytest.raises(ValueError, match="pid"):
        identity.ProcessIdentity(host="", boot="", namespaces="", pid=pid, started="")


def test_the_own_identity_is_of_this_process():
    own = identity.own_identity()
    assert own == identity.own_identity()
    assert own.pid == os.getpid()
    assert own.host
    if sys.platform == "linux":
        assert own.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        assert own.started == Path("/proc/self/stat").read_text().split()[21]
        assert re.fullmatch(r"pid:\[\d+\]( time:\[\d+\])?", own.namespaces)
    code = "from mlops_ext.processes.identity import own_identity as own; print(own())"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        theirs = child.communicate()[0].strip()
    mine = dataclasses.replace(own, pid=child.pid, started="")
    assert re.sub(r"started='[^']*'", "started=''", theirs) == repr(mine)
