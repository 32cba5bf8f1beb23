"""Many threads import and patch several armed frameworks that need each other: none hangs."""

import subprocess
import sys

import pytest

FRAMEWORKS = {
    "fw_a/__init__.py": "",
    "fw_a/server.py": "import time; time.sleep(0.002)\nimport fw_b.core\ndef start(): return 'a'\n",
    "fw_b/__init__.py": "",
    "fw_b/core.py": "import time; time.sleep(0.002)\nimport fw_c\ndef run(): return 'b'\n",
    "fw_c.py": (
        "import threading, time\n"
        "thread = threading.Thread(target=__import__, args=('fw_d',))\n"  # as an import may start one
        "thread.start(); thread.join()\n"
        "time.sleep(0.002)\n"
        "class Client:\n    def go(self): return 'c'\n"
    ),
    "fw_d.py": "import time; time.sleep(0.002)\n",
    "fw_x.py": """
from mlops_ext import Patch, hookimpl
from mlops_ext.hookspecs import Framework

TARGETS = {"fw_a": "fw_a.server:start", "fw_b": "fw_b.core:run", "fw_c": "fw_c:Client.go"}

@hookimpl
def mlops_ext_frameworks():
    return [Framework(name=name, distribution="fw-x", supported=">=1", extension="fw_x", summary="x")
            for name in TARGETS]

@hookimpl
def mlops_ext_patches():
    return [Patch(id=name + ".x", framework=name, distribution="fw-x", versions=">=1", target=target,
                  replacement="fw_x:make", reason="r", verified_by="v") for name, target in TARGETS.items()]

def make(original):
    return lambda *args: "patched " + original(*args)
""",
    "fw_x-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: fw-x\nVersion: 1.0\n",
    "fw_x-1.0.dist-info/entry_points.txt": "[mlops_ext]\nfw_x = fw_x\n",
}

ROUNDS = """
import faulthandler, importlib, random, sys, threading
from mlops_ext.extensions import activation, finder

TARGETS = ("fw_a", "fw_b", "fw_c")
apply_for_real = activation.apply
held = []

def apply(name):
    held.append(apply_for_real(name))  # list.append is atomic

def use():
    with apply_for_real("fw_a"), apply_for_real("fw_b"), apply_for_real("fw_c"):
        import fw_a.server, fw_b.core, fw_c
        seen.append((fw_a.server.start(), fw_b.core.run(), fw_c.Client().go()))

activation.apply = apply  # what an import triggers
ours = random.Random(0)
for number in range(int(sys.argv[1])):
    for name in [m for m in sys.modules if m.startswith("fw_") and m != "fw_x"]:
        del sys.modules[name]
    for table in (finder.armed, finder._before, finder._after):
        table.clear()
    held.clear()
    seen = []
    jobs = [lambda n=n: activation.apply_on_import(n) for n in TARGETS]
    for job in jobs[: number % 4]:  # some are armed before, the others meanwhile
        job()
    jobs = jobs[number % 4 :] + [lambda n=n: importlib.import_module(n) for n in ("fw_a.server", "fw_b", "fw_c")]
    jobs += [lambda n=n: apply(n) for n in TARGETS] + [use] * 3
    ours.shuffle(jobs)
    start = threading.Barrier(len(jobs))
    threads = [threading.Thread(target=lambda j=job: (start.wait(), j()), daemon=True) for job in jobs]
    for thread in threads: thread.start()
    for thread in threads: thread.join(60)
    if any(thread.is_alive() for thread in threads):
        faulthandler.dump_traceback(all_threads=True)
        sys.exit(f"round {number} hangs")
    assert seen == [("patched a", "patched b", "patched c")] * 3, (number, seen)
    for patches in held: patches.revert()
    import fw_a.server, fw_b.core, fw_c
    assert (fw_a.server.start(), fw_b.core.run(), fw_c.Client().go()) == ("a", "b", "c"), number
print("rounds:", number + 1)
"""


CROSSING = """
import importlib.machinery, sys, threading, time
from importlib import _bootstrap
from mlops_ext.extensions import activation

class Slow(importlib.machinery.SourceFileLoader):
    "Takes until the other thread, which imports a submodule of fw_b, waits for fw_b."
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "fw_b" and not other.ident:
            spec = importlib.machinery.PathFinder.find_spec(name, path)
            spec.loader = cls(name, spec.origin)
            return spec

    def create_module(self, spec):
        other.start()
        end = time.monotonic() + 60
        while not _bootstrap._blocking_on.get(other.ident) and time.monotonic() < end:
            time.sleep(0.001)

other = threading.Thread(target=importlib.import_module, args=("fw_b.core",))
sys.meta_path.insert(0, Slow)
activation.apply_on_import("fw_b")
import fw_b  # its hook imports fw_b.core
other.join()
import fw_b.core
print(fw_b.core.run())
"""


def test_a_thread_that_imports_a_target_at_the_same_time_costs_no_patch(tmp_path):
    """Python refuses to wait if two imports wait for each other; the patch is applied later."""
    write(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", CROSSING], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("patched b\n", "")


def write(folder):
    """The three frameworks and their extension."""
    for name, text in FRAMEWORKS.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@pytest.mark.parametrize("rounds", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_three_armed_frameworks_are_imported_and_patched_by_many_threads(tmp_path, rounds):
    """In a process of its own, as a hang would stay."""
    write(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ROUNDS, str(rounds)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == f"rounds: {rounds}\n", done.stderr[-3000:]
    assert done.stderr == ""
