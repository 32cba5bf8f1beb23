"""The joblib part of ``mlops-ext demo``: joblib's own backend and the shared one, side by side."""

from __future__ import annotations

import random
import runpy
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from mlops_ext.demo import Claim, Event, Progress

_PROCESSES = 6
_CALLS = 40


def demo() -> Iterator[Event]:
    """Two faults of a shared cache, with joblib's own backend and with the shared one."""
    import joblib_ext  # noqa: F401  # registers the backend

    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        for what, measure, wanted in (
            (f"computations, {_PROCESSES} processes on a cold function", _computations, 1),
            (f"results from the other code version, of {2 * _CALLS}", _wrong_versions, 0),
        ):
            yield Progress(text=what)
            before, after = (measure(base, backend) for backend in ("local", "shared"))
            holds = before > wanted == after
            yield Claim(what=what, before=str(before), after=str(after), holds=holds)


def _slow(number: int, log: Path) -> int:
    with log.open("a") as file:
        file.write("x")
    time.sleep(0.5)
    return number


def _computations(base: Path, backend: str) -> int:
    """How often the function ran that several processes called."""
    from joblib import Memory, Parallel, delayed

    log = base / f"log-{backend}"
    cached = Memory(base / f"cold-{backend}", backend=backend, verbose=0).cache(_slow)
    with Parallel(_PROCESSES) as pool:
        pool(delayed(time.sleep)(1) for _ in range(_PROCESSES))  # until all are there
        pool(delayed(cached)(1, log) for _ in range(_PROCESSES))
    return log.stat().st_size


def _wrong_versions(base: Path, backend: str) -> int:
    """How many results two versions of a function got from the other's code."""
    from joblib import Memory

    cached = []
    for version in (1, 2):
        file = base / f"{backend}-{version}.py"
        file.write_text(f"def predict(x):\n    return {version}\n", encoding="utf-8")
        memory = Memory(base / f"versions-{backend}", backend=backend, verbose=0)
        cached.append(
            (version, memory.cache(runpy.run_path(str(file), run_name="model")["predict"]))
        )
    wrong = 0
    order = random.Random(3)  # noqa: S311  # a fixed order of two versions
    for number in range(_CALLS):
        order.shuffle(cached)
        wrong += sum(predict(number) != version for version, predict in cached)
    return wrong
