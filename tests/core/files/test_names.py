import os
import re
import subprocess
import sys
import threading

import pytest

from mlops_ext.files import TempName, names, parse_temp_name, temp_name
from mlops_ext.processes.identity import Liveness, is_alive, own_boot, own_host


def test_a_name_says_who_made_it():
    parts = parse_temp_name(temp_name("output.pkl"))
    assert parts is not None
    assert parts.stem == "output.pkl"
    assert (parts.host, parts.boot, parts.pid) == (own_host(), own_boot(), os.getpid())
    assert parts.thread == threading.get_ident()
    assert re.fullmatch("[0-9a-f]{16}", parts.random)


def test_a_stem_with_dots_and_dashes_survives():
    parts = parse_temp_name(temp_name("a.b-c.tmp"))
    assert parts is not None
    assert parts.stem == "a.b-c.tmp"


@pytest.mark.parametrize("name", ["", "output.pkl", "x.tmp", "a.host-00-1-1-00.tmp"])
def test_other_names_are_not_ours(name):
    assert parse_temp_name(name) is None


@pytest.mark.parametrize("stem", ["a/b", "/", "a\0b"])
def test_a_stem_with_a_path_is_refused(stem):
    with pytest.raises(ValueError, match="stem"):
        temp_name(stem)


def test_a_long_stem_is_shortened_to_what_file_systems_accept(tmp_path):
    for stem in ("x" * 400, "\N{GREEK SMALL LETTER ALPHA}" * 200):
        name = temp_name(stem)
        assert len(os.fsencode(name)) <= 255
        (tmp_path / name).touch()


def test_a_forked_child_makes_names_of_its_own():
    mine = temp_name("x")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, temp_name("x").encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        theirs = parse_temp_name(pipe.read())
    assert theirs is not None
    assert theirs.pid == child
    assert theirs.pid != parse_temp_name(mine).pid


def test_the_maker_of_a_name_is_alive_until_it_ends():
    code = "from mlops_ext.files import temp_name; print(temp_name('x'), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        name = parse_temp_name(child.stdout.readline().strip())
        assert name.liveness() is Liveness.ALIVE
        child.communicate("\n")
    assert name.liveness() is Liveness.DEAD


def test_nothing_is_said_of_processes_elsewhere():
    here = {"stem": "", "pid": 1, "thread": 1, "random": "0" * 16}
    for host, boot in (("elsewhere", own_boot()), (own_host(), "0" * 8)):
        name = TempName(host=host, boot=boot, **here)
        assert name.liveness() is Liveness.UNKNOWN


@pytest.mark.parametrize("pid", [0, -1, 2**70])
def test_impossible_pids_are_not_alive(pid):
    assert not is_alive(pid)


def test_the_process_itself_and_init_are_alive():
    assert is_alive(os.getpid())
    assert is_alive(1)


def test_without_a_boot_id_an_absent_process_of_this_host_may_be_another_hosts(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
    gone = TempName(
        stem="", host=own_host(), boot=own_boot(), pid=child.pid, thread=1, random="0" * 16
    )
    assert gone.liveness() is Liveness.DEAD
    monkeypatch.setattr(names, "boot_id", lambda: "")
    assert gone.liveness() is Liveness.UNKNOWN
    here = TempName(
        stem="", host=own_host(), boot=own_boot(), pid=os.getpid(), thread=1, random="0" * 16
    )
    assert here.liveness() is Liveness.ALIVE
