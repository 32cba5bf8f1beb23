"""Materializers' temporary directories: bare ZenML beside ours, on real mounts and processes."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mlops_ext import apply, tempdirs
from mlops_ext.errors import TempDirError

MATERIALIZER = """
import sys
from zenml.enums import ArtifactType
from zenml.materializers.base_materializer import BaseMaterializer

class Store:  # the part of an artifact store that this needs
    def size(self, path): return 0

class Scratch(BaseMaterializer):
    ASSOCIATED_TYPES = (bytes,)
    ASSOCIATED_ARTIFACT_TYPE = ArtifactType.DATA

scratch = Scratch(uri="/nowhere", artifact_store=Store())
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A root for temporary directories, for both: TMPDIR and MLOPS_EXT_TEMP_DIR."""
    place = tmp_path / "scratch"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    monkeypatch.setenv("MLOPS_EXT_TEMP_DIR", str(place))
    monkeypatch.setattr(tempdirs, "_open", {})
    monkeypatch.setattr(tempdirs, "_warned", set())
    return place


@pytest.fixture(params=["bare", "patched"])
def patched(request):
    """Whether the patches of zenml_ext are applied, for each of both."""
    pytest.importorskip("zenml")
    if request.param == "bare":
        yield False
        return
    with apply("zenml") as patches:
        assert all(report.outcome.value == "applied" for report in patches.status())
        yield True


@pytest.fixture
def ours():
    pytest.importorskip("zenml")
    with apply("zenml"):
        yield


@pytest.fixture
def scratch(zenml_home, monkeypatch):
    for name, value in zenml_home.environment().items():
        if name.startswith("ZENML_"):
            monkeypatch.setenv(name, value)
    namespace = {"__name__": "scratch"}
    exec(compile(MATERIALIZER, "scratch.py", "exec"), namespace)
    return namespace["scratch"]


def mount(place, *options):
    done = subprocess.run(
        ["mount", "-t", "tmpfs", *options, "tmpfs", str(place)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no right to mount: {done.stderr.decode().strip()}")


@pytest.fixture
def mounts():
    """Mounts that are undone at the end."""
    places = []

    def make(place, *options):
        mount(place, *options)
        places.append(place)

    yield make
    for place in reversed(places):
        subprocess.run(["umount", "--lazy", str(place)], check=False, capture_output=True)


def save(scratch):
    """What a materializer does when a finished step's output is stored."""
    with scratch.get_temporary_directory(delete_at_exit=True) as directory:
        (Path(directory) / "part.bin").write_bytes(b"x" * 100)
        return Path(directory)


def test_a_directory_lives_inside_the_block_and_goes_after_it(root, patched, scratch):
    with scratch.get_temporary_directory(delete_at_exit=True) as directory:
        assert Path(directory).is_relative_to(root)
        assert Path(directory).is_dir()
    assert not Path(directory).exists()


def test_a_busy_file_fails_no_finished_step(root, patched, scratch, mounts, caplog):
    """A mount point inside is as busy on Linux as an open file is on Windows."""

    def store():
        with scratch.get_temporary_directory(delete_at_exit=True) as directory:
            held = Path(directory) / "held"
            held.mkdir()
            mounts(held)
            return held

    if not patched:
        with pytest.raises(OSError, match="busy"):
            store()
        return
    with caplog.at_level(logging.WARNING):
        held = store()
    assert "held" in caplog.text
    assert "could not be removed" in caplog.text
    subprocess.run(["umount", str(held)], check=True)
    (directory,) = tempdirs._open.values()
    assert directory.close()  # as at exit
    assert list(root.iterdir()) == []


def test_what_is_busy_when_the_step_ends_is_removed_later(
    root, patched, scratch, mounts, monkeypatch
):
    """Upstream logs the error and forgets the directory."""
    callbacks = []
    context = type("Context", (), {})()
    context.pipeline_run = type("Run", (), {"name": "run-1"})()
    context._cleanup_registry = type("Registry", (), {"register_callback": callbacks.append})
    monkeypatch.setattr("zenml.get_step_context", lambda: context)
    with scratch.get_temporary_directory(delete_at_exit=False) as directory:
        held = Path(directory) / "held"
        held.mkdir()
        mounts(held)
    (callback,) = callbacks
    if not patched:
        with pytest.raises(OSError, match="busy"):
            callback()
    else:
        callback()
    subprocess.run(["umount", str(held)], check=True)
    tempdirs._close_all()
    assert Path(directory).exists() is (not patched)


def test_a_full_disk_is_told_with_its_place_and_size(root, patched, scratch, mounts):
    mounts(root, "-o", "size=64k")
    expected = rf"{root}.*bytes are free" if patched else "No space left"

    def store():
        with scratch.get_temporary_directory(delete_at_exit=True) as directory:
            (Path(directory) / "big").write_bytes(b"x" * 400_000)

    with pytest.raises(OSError, match=expected) as caught:
        store()
    assert isinstance(caught.value, TempDirError) is patched
    assert (str(root) in str(caught.value)) is patched


def test_a_missing_root_is_made_where_zenml_would_fall_back_in_silence(
    zenml_home, tmp_path, request
):
    """Bare: tempfile passes over a TMPDIR that does not exist, without a word."""
    place = tmp_path / "not" / "there"
    code = MATERIALIZER + (
        "with scratch.get_temporary_directory(delete_at_exit=True) as d: print('IN', d)"
    )
    found = {}
    for name, variables in {
        "bare": {"TMPDIR": str(place)},
        "ours": {"TMPDIR": str(place), "MLOPS_EXT_TEMP_DIR": str(place)},
    }.items():
        done = zenml_home.python(code, **variables)
        found[name] = next(line[3:] for line in done.stdout.splitlines() if line[:3] == "IN ")
    assert not found["bare"].startswith(str(place))
    assert found["ours"].startswith(str(place))


def test_what_a_killed_step_left_is_gone_after_the_next(root, patched, scratch):
    def step(read, write):
        with scratch.get_temporary_directory(delete_at_exit=True) as directory:
            (Path(directory) / "part").touch()
            os.write(write, os.fsencode(directory))
            os.read(read, 1)  # nobody writes: it waits to be killed

    there, back = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            step(there[0], back[1])
        finally:
            os._exit(1)
    left = Path(os.fsdecode(os.read(back[0], 4096)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert left.exists()
    save(scratch)
    assert left.exists() is (not patched)
    assert not [path for path in root.iterdir() if f"-{child}-" in path.name]
    for end in (*there, *back):
        os.close(end)


def test_a_directory_that_upstream_leaves_to_the_caller_outlives_the_process(root, ours, scratch):
    with scratch.get_temporary_directory(
        delete_at_exit=False, delete_after_step_execution=False
    ) as directory:
        pass
    tempdirs._close_all()
    assert Path(directory).is_dir()
    shutil.rmtree(directory)


@pytest.mark.integration
def test_settings_that_cannot_be_read_break_no_import(zenml_home, tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.mlops-ext]\ntemp_dri = 1\n")
    done = zenml_home.python("import zenml; print('fine')", cwd=tmp_path)
    assert done.stdout.strip().endswith("fine")
    assert "did you mean temp_dir?" in done.stderr


@pytest.mark.integration
@pytest.mark.parametrize(
    ("variables", "package"),
    [
        pytest.param({}, "zenml", id="nothing"),
        pytest.param({"MLOPS_EXT_TEMP_DIR": tempfile.gettempdir()}, "zenml_ext", id="temp_dir"),
        pytest.param(
            {"MLOPS_EXT_AUTOPATCH": "zenml"},
            "zenml_ext",
            id="autopatch",
            marks=pytest.mark.integration,
        ),
        pytest.param(
            {"MLOPS_EXT_AUTOPATCH": "zenml", "MLOPS_EXT_DISABLE": "zenml"},
            "zenml",
            id="disabled",
            marks=pytest.mark.integration,
        ),
    ],
)
def test_nothing_is_patched_unless_somebody_asks(zenml_home, variables, package):
    code = (
        "from zenml.materializers.base_materializer import BaseMaterializer as B\n"
        "print('BY', B.get_temporary_directory.__module__)\n"
    )
    done = zenml_home.python(code, **variables)
    assert done.stdout.split("BY ")[1].partition(".")[0].strip() == package


def test_the_public_face_imports_zenml_only_when_it_is_used(tmp_path):
    code = """
import sys, tempfile
import zenml_ext
assert "zenml" not in sys.modules and "pydantic" not in sys.modules
before = tempfile.gettempdir()
place = zenml_ext.set_temp_dir(sys.argv[1])
assert str(place) == sys.argv[1] == tempfile.gettempdir(), tempfile.gettempdir()
assert "zenml" not in sys.modules
"""
    code += (
        MATERIALIZER
        + """
with scratch.get_temporary_directory(delete_at_exit=True) as directory:
    assert directory.startswith(sys.argv[1]), directory
try:
    zenml_ext.set_temp_dir("/proc/no/such/place")
except Exception as error:
    assert type(error).__name__ == "TempDirError", error
assert tempfile.gettempdir() == sys.argv[1]
assert zenml_ext.set_temp_dir(None) is None
assert tempfile.gettempdir() == before
with scratch.get_temporary_directory(delete_at_exit=True) as directory:
    assert not directory.startswith(sys.argv[1]), directory
assert zenml_ext.TempDir(path="/scratch").path == "/scratch"
for name in zenml_ext.__all__:
    assert getattr(zenml_ext, name).__name__ == name
"""
    )
    place = tmp_path / "chosen"
    done = subprocess.run(
        [sys.executable, "-c", code, str(place)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
