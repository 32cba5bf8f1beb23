"""WinError 32 for real: ZenML's materializers under CPython for Windows, which Wine runs."""

import importlib.util
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.needs_wine, pytest.mark.timeout(1500)]

SOURCES = [str(Path(__file__).parents[3] / name) for name in ("core", "plugins")]

HOLD = """
import subprocess, sys
from pathlib import Path
def hold(directory):
    "Another process that has a file in *directory* open, as a virus scanner or a viewer does."
    file = Path(directory, "held.bin")
    code = f"f = open({str(file)!r}, 'wb'); print('up', flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == "up"
    return process
"""


def test_what_a_dead_process_left_goes_when_nobody_holds_it_any_more(wine_python, tmp_path):
    code = (
        HOLD
        + f"""
from mlops_ext import tempdirs
root = Path({wine_python.path(tmp_path)!r})
owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, text=True)
scratch = Path(owner.stdout.readline().strip())
run = (scratch.parent,)
holder = hold(scratch)
print("ALIVE", tempdirs.reap(root).live == run)
owner.kill()
owner.wait()
print("HELD", tempdirs.reap(root).failed == run, scratch.exists())
holder.communicate("\\n")
print("FREE", tempdirs.reap(root).removed == run, list(root.iterdir()))
"""
    )
    owner = (
        f"import sys; sys.path[:0] = {[wine_python.path(p) for p in SOURCES]!r}\n"
        "from pathlib import Path\n"
        "from mlops_ext import tempdirs\n"
        f"directory = tempdirs.RunDirectory.create(Path({wine_python.path(tmp_path)!r}), 'run')\n"
        "print(directory.make(), flush=True)\n"
        "input()\n"
    )
    done = wine_python.run("-c", f"OWNER = {owner!r}\n{code}", pythonpath=SOURCES)
    words = ("ALIVE", "HELD", "FREE")
    lines = [line for line in done.stdout.splitlines() if line.startswith(words)]
    assert lines == ["ALIVE True", "HELD True True", "FREE True []"]
    assert "held.bin" in done.stderr


UPSTREAM = """
import importlib.util, sys, types
from unittest.mock import MagicMock
# ZenML's own base_materializer.py, unchanged. What it imports only for annotations and for its
# registry is left out: that needs pydantic-core, which does not load under Wine 8.
for name in ("zenml", "zenml.artifact_stores", "zenml.artifact_stores.base_artifact_store",
             "zenml.enums", "zenml.exceptions", "zenml.logger", "zenml.materializers",
             "zenml.materializers.materializer_registry", "zenml.metadata",
             "zenml.metadata.metadata_types"):
    sys.modules[name] = MagicMock(__path__=[])
def outside():
    raise RuntimeError("outside of a step")
sys.modules["zenml"].get_step_context = outside
name = "zenml.materializers.base_materializer"
spec = importlib.util.spec_from_file_location(name, SOURCE)
sys.modules[name] = module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
Materializer = module.BaseMaterializer
"""


@pytest.mark.parametrize("kind", ["bare", "ours"])
def test_a_finished_step_does_not_fail_over_a_held_file(wine_python, tmp_path, kind):
    found = importlib.util.find_spec("zenml")
    if found is None:
        pytest.skip("ZenML is not installed")
    source = Path(found.origin).parent / "materializers" / "base_materializer.py"
    code = (
        f"SOURCE = {wine_python.path(source)!r}\n"
        + UPSTREAM
        + HOLD
        + f"""
if {kind == "ours"}:
    from zenml_ext.patches import make_get_temporary_directory as make
    Materializer.get_temporary_directory = make(Materializer.get_temporary_directory)
try:
    with Materializer("/nowhere", object()).get_temporary_directory(
        delete_at_exit=True
    ) as directory:
        holder = hold(directory)
    print("STORED")
except OSError as error:
    print("FAILED", error.winerror)
holder.communicate("\\n")
"""
    )
    done = wine_python.run(
        "-c", code, pythonpath=SOURCES, MLOPS_EXT_TEMP_DIR=wine_python.path(tmp_path)
    )
    expected = "FAILED 32" if kind == "bare" else "STORED"
    assert done.stdout.splitlines()[-1] == expected
    if kind == "ours":
        assert "held.bin" in done.stderr
        assert list(tmp_path.iterdir()) == []  # removed at exit, when nobody held it any more
