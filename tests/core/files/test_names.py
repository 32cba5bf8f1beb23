import os
import re
import subprocess
import sys
import threading

import pytest

from mlops_ext.files import liveness_of_maker, names, temp_name
from mlops_ext.processes.identity import Liveness, is_alive, own_boot, own_host


def parts(name):
    """Host, boot, pid, thread and random part of a name."""
    return name.split(".")[-2].split("-")


@pytest.mark.parametrize("stem", ["output.pkl", "a.b-c.tmp", "line\nbreak", ""])
def test_a_name_says_who_made_it(stem):
    name = temp_name(stem)
    assert name.startswith(stem + ".")
    host, boot, pid, thread, random = parts(name)
    assert (host, boot, int(pid, 16)) == (own_host(), own_boot(), os.getpid())
    assert int(thread, 16) == threading.get_ident()
    assert re.fullmatch("[0-9a-f]{16}", random)
    assert liveness_of_maker(name) is Liveness.ALIVE


def test_nothing_is_said_of_the_maker_of_another_name():
    mine = temp_name("x")
    foreign = ["", "output.pkl", "x.tmp", "a.host-00-1-1-00.tmp", mine + "x", mine[2:]]
    assert {name: liveness_of_maker(name) for name in foreign} == dict.fromkeys(
        foreign, Liveness.UNKNOWN
    )


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
        theirs = parts(pipe.read())
    assert int(theirs[2], 16) == child
    assert theirs[2] != parts(mine)[2]


def test_the_maker_of_a_name_is_alive_until_it_ends():
    code = "from mlops_ext.files import temp_name; print(temp_name('x'), flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        name = child.stdout.readline().strip()
        assert liveness_of_maker(name) is Liveness.ALIVE
        child.communicate("\n")
    assert liveness_of_maker(name) is Liveness.DEAD


def name_of(pid, host=None, boot=None):
    return f"x.{host or own_host()}-{boot or own_boot()}-{pid:x}-1-{'0' * 16}.tmp"


def test_nothing_is_said_of_processes_elsewhere():
    assert liveness_of_maker(name_of(1)) is Liveness.ALIVE
    assert liveness_of_maker(name_of(1, host="elsewhere")) is Liveness.UNKNOWN
    assert liveness_of_maker(name_of(1, boot="0" * 8)) is Liveness.UNKNOWN


@pytest.mark.parametrize("pid", [0, -1, 2**70])
def test_impossible_pids_are_not_alive(pid):
    assert not is_alive(pid)


def test_the_process_itself_and_init_are_alive():
    assert is_alive(os.getpid())
    assert is_alive(1)


def test_without_a_boot_id_an_absent_process_of_this_host_may_be_another_hosts(monkeypatch):
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        child.wait()
    gone = name_of(child.pid)
    assert liveness_of_maker(gone) is Liveness.DEAD
    monkeypatch.setattr(names, "boot_id", lambda: "")
    assert liveness_of_maker(gone) is Liveness.UNKNOWN
    assert liveness_of_maker(name_of(os.getpid())) is Liveness.ALIVE
