"""The joblib part of ``mlops-ext demo``: joblib's own backend and the shared one, side by side."""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlops_ext.demo import Claim, Event, Progress
from mlops_ext.settings import environment

_PROCESSES = 6
_CALLS = 40

_COLD = """
import os, sys, time
import joblib_ext
from joblib import Memory
def slow(x):
    fd = os.open(sys.argv[3], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, b"x")
    os.close(fd)
    time.sleep(0.5)
    return x
slow.__module__ = "work"
cached = Memory(sys.argv[1], backend=sys.argv[2], verbose=0).cache(slow)
print("ready", flush=True)
sys.stdin.readline()
assert cached(1) == 1
"""

_VERSIONS = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import joblib_ext
from joblib import Memory
from model import predict, VERSION
cached = Memory(sys.argv[2], backend=sys.argv[3], verbose=0).cache(predict)
wrong = 0
print("ready", flush=True)
for x in range(int(sys.argv[4])):
    sys.stdin.readline()
    print(int(cached(x) != (VERSION, x)), flush=True)
"""

_MODEL = "VERSION = {version}\n\n\ndef predict(x):\n    return {version}, x\n"


def demo() -> Iterator[Event]:
    """Two faults of a shared cache, with joblib's own backend and with the shared one."""
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        yield Progress(text=f"{_PROCESSES} processes call one cold function")
        before, after = (_computations(base, backend) for backend in ("local", "shared"))
        yield Claim(
            what=f"computations, {_PROCESSES} processes on a cold function",
            before=str(before),
            after=str(after),
            holds=before > 1 and after == 1,
        )
        yield Progress(text="two versions of a function share a cache")
        before, after = (_wrong_versions(base, backend) for backend in ("local", "shared"))
        yield Claim(
            what=f"results from the other code version, of {2 * _CALLS}",
            before=str(before),
            after=str(after),
            holds=before > 0 and after == 0,
        )


def _start(code: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def _ask(process: subprocess.Popen[str], *, write: bool = True) -> str:
    """Send a line and return the answer."""
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("the process was started without pipes")
    if write:
        process.stdin.write("\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def _computations(base: Path, backend: str) -> int:
    """How often the function ran."""
    log = base / f"log-{backend}"
    workers = [_start(_COLD, base / f"cold-{backend}", backend, log) for _ in range(_PROCESSES)]
    for worker in workers:
        _ask(worker, write=False)
    for worker in workers:
        if worker.stdin is not None:
            worker.stdin.write("\n")
            worker.stdin.flush()
    for worker in workers:
        worker.communicate()
        if worker.returncode:
            raise RuntimeError(f"a worker of the demo ended with status {worker.returncode}")
    return log.stat().st_size


def _wrong_versions(base: Path, backend: str) -> int:
    """How many results two processes with two versions got from the other's code."""
    workers = []
    for version in (1, 2):
        code = base / f"code-{backend}-{version}"
        code.mkdir()
        (code / "model.py").write_text(_MODEL.format(version=version), encoding="utf-8")
        workers.append(_start(_VERSIONS, code, base / f"versions-{backend}", backend, _CALLS))
    for worker in workers:
        _ask(worker, write=False)
    wrong = 0
    order = random.Random(3)  # noqa: S311  # a fixed order of two processes
    for _ in range(_CALLS):
        order.shuffle(workers)
        wrong += sum(int(_ask(worker)) for worker in workers)
    for worker in workers:
        worker.communicate()
    return wrong
