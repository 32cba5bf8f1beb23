"""What must hold of shared files whatever the names, contents, processes and moments."""

import contextlib
import os
import shutil
import signal
import string
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_ext.files import liveness_of_maker, publish, remove, temp_name
from mlops_ext.processes.identity import Liveness

NAMESPACE = ["unshare", "--uts", "--pid", "--mount", "--fork", "--mount-proc"]


def namespaces_work():
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@given(st.text(st.characters(exclude_characters="/\\\0", exclude_categories=["Cs"]), max_size=300))
def test_any_stem_makes_a_name_that_fits_and_parses(stem):
    name = temp_name(stem)
    assert len(os.fsencode(name)) <= 255
    assert stem.startswith(name.rsplit(".", 2)[0])
    assert liveness_of_maker(name) is Liveness.ALIVE


def test_threads_never_make_a_name_twice():
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: temp_name("x"), range(20_000)))
    assert len(set(names)) == len(names)


@pytest.mark.needs_namespaces
def test_nodes_with_equal_pids_never_make_a_name_twice():
    if not namespaces_work():
        pytest.skip("unsharing UTS and PID namespaces is not permitted here")
    code = (
        "import os; from mlops_ext.files import temp_name\n"
        "print(os.getpid(), *(temp_name('x') for _ in range(500)), flush=True); input()"
    )
    with (
        contextlib.ExitStack() as stack
    ):  # all at once: the kernel gives a namespace's id out again
        nodes = [
            stack.enter_context(
                subprocess.Popen(
                    [
                        *NAMESPACE,
                        "sh",
                        "-c",
                        f'hostname {host} && exec {sys.executable} -c "{code}"',
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for host in ("node-a", "node-b", "node-a")
        ]
        outputs = [node.stdout.readline().split() for node in nodes]
        for node in nodes:
            node.communicate("\n")
    assert len({output[0] for output in outputs}) == 1, "the nodes should use the same pid"
    names = [name for output in outputs for name in output[1:]]
    assert len(set(names)) == len(names) == 1500
    makers = [output[1].split(".")[1].split("-") for output in outputs]
    assert {host for host, *_ in makers} == {"node_a", "node_b"}
    assert len({boot for _, boot, *_ in makers}) == 3, "a PID namespace is part of who made a name"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(contents=st.lists(st.lists(st.binary(max_size=200), max_size=4), min_size=1, max_size=8))
def test_readers_see_one_content_or_the_other(tmp_path, contents):
    target = tmp_path / "target"
    for pieces in contents:
        publish(target, pieces)
        assert target.read_bytes() == b"".join(pieces)
    assert [entry.name for entry in tmp_path.iterdir()] == ["target"]


WRITER = """
import sys
from mlops_ext.files import publish
print("ready", flush=True)
number = 0
while True:
    number += 1
    publish(sys.argv[1], [(b"%08d" % number) * 40_000])
"""


def whole(data):
    return len(data) == 320_000 and data == data[:8] * 40_000


@pytest.mark.parametrize("delay_ms", range(0, 40, 4))
def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path, delay_ms):
    target = tmp_path / "target"
    publish(target, [b"%08d" % 0 * 40_000])
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout.readline() == "ready\n"
        seen = 0
        try:
            child.wait(timeout=delay_ms / 1000)
        except subprocess.TimeoutExpired:
            data = target.read_bytes()
            assert whole(data), "a reader saw half a file"
            seen = int(data[:8])
        child.send_signal(signal.SIGKILL)
    data = target.read_bytes()
    assert whole(data)
    assert int(data[:8]) >= seen
    left = [entry.name for entry in tmp_path.iterdir() if entry != target]
    assert len(left) <= 1, "one process leaves one temporary file at most"
    assert all(name.startswith("target.") and name.endswith(".tmp") for name in left)


paths = st.lists(st.text(string.ascii_lowercase, min_size=1, max_size=3), min_size=1, max_size=4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    files=st.lists(st.tuples(paths, st.booleans(), st.booleans()), max_size=12),
    names=st.randoms(use_true_random=False),
)
def test_any_tree_with_open_and_read_only_files_is_removed_whole(tmp_path, files, names):
    tree = tmp_path / f"tree-{names.getrandbits(64):x}"
    tree.mkdir()
    made: set[Path] = set()
    held = []
    for parts, read_only, is_open in files:
        file = tree.joinpath(*(f"d{part}" for part in parts[:-1]), f"f{parts[-1]}")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"content")
        if is_open:
            held.append(file.open("rb"))
        if read_only:
            file.chmod(0o400)
        made.update(
            [file, *(parent for parent in file.parents if tree in (parent, *parent.parents))]
        )
    removal = remove(tree, patience_s=0)
    assert removal.complete
    assert removal.removed == len(made | {tree})
    assert not tree.exists()
    for file in held:
        assert file.read() == b"content"
        file.close()
