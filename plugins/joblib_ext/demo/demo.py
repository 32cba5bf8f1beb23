"""The joblib part of ``mlops-ext demo``: joblib's own backend and the shared one, side by side."""

from __future__ import annotations

import contextlib
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import IO, cast

from mlops_ext.demo import Claim, Event, Progress
from mlops_ext.settings import environment

_PROCESSES = 6
_CALLS = 40

_WORKER = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, sys.argv[1])
import joblib_ext, model
from joblib import Memory
cached = Memory(sys.argv[2], backend=sys.argv[3], verbose=0).cache(model.predict)
print("ready", flush=True)
for line in sys.stdin:
    print(cached(int(line)), flush=True)
"""
_SLOW = """
import os, time
def predict(x):
    with open(os.path.join(os.path.dirname(__file__), "log"), "a") as file:
        file.write("x")
    time.sleep(0.5)
    return x
"""


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


@contextlib.contextmanager
def _workers(folders: list[Path], cache: Path, backend: str) -> Iterator[list[Popen[str]]]:
    """Processes that share *cache*, each with the ``model.py`` of its folder."""
    environ = {**environment(), "PYTHONDONTWRITEBYTECODE": "1"}
    with contextlib.ExitStack() as stack:
        workers = []
        for folder in folders:
            command = [sys.executable, "-c", _WORKER, str(folder), str(cache), backend]
            worker = Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=environ)
            workers.append(stack.enter_context(worker))
        for worker in workers:
            _hear(worker)
        yield workers


def _ask(worker: Popen[str], number: int) -> None:
    stream = cast("IO[str]", worker.stdin)
    stream.write(f"{number}\n")
    stream.flush()


def _hear(worker: Popen[str]) -> str:
    line = cast("IO[str]", worker.stdout).readline()
    if not line:
        raise RuntimeError("a worker of the demo ended early")
    return line.strip()


def _write_model(folder: Path, code: str) -> Path:
    folder.mkdir()
    (folder / "model.py").write_text(code, encoding="utf-8")
    return folder


def _computations(base: Path, backend: str) -> int:
    """How often the function ran."""
    folder = _write_model(base / f"slow-{backend}", _SLOW)
    with _workers([folder] * _PROCESSES, base / f"cold-{backend}", backend) as workers:
        for worker in workers:
            _ask(worker, 1)
        for worker in workers:
            _hear(worker)
    return (folder / "log").stat().st_size


def _wrong_versions(base: Path, backend: str) -> int:
    """How many results two processes with two versions got from the other's code."""
    code = "def predict(x):\n    return {}\n"
    versions = ["1", "2"]
    folders = [_write_model(base / f"{backend}-{v}", code.format(v)) for v in versions]
    wrong = 0
    order = random.Random(3)  # noqa: S311  # a fixed order of two processes
    with _workers(folders, base / f"versions-{backend}", backend) as workers:
        pairs = list(zip(versions, workers, strict=True))
        for number in range(_CALLS):
            order.shuffle(pairs)
            for version, worker in pairs:
                _ask(worker, number)
                wrong += _hear(worker) != version
    return wrong
