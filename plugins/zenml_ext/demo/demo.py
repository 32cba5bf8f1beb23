"""The demo of zenml_ext: a real pipeline on ZenML's embedded store, bare and with us."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_ext import settings
from mlops_ext.demo import Claim, Event, Progress
from mlops_ext.errors import MlopsExtError
from zenml_ext.memory.exits import SIGKILLED

_LIMIT = 500 * 1024**2
# A step's process takes about 5 s on a free machine; beyond this something hangs.
_TIMEOUT_S = 240.0


def demo() -> Iterator[Event]:
    """A step that needs more than its limit."""
    with tempfile.TemporaryDirectory(prefix="zenml-demo-") as folder:
        shop = _Workshop(folder=Path(folder))
        shutil.copyfile(Path(__file__).with_name("pipeline.py"), shop.folder / "pipeline.py")
        yield Progress(text="bare ZenML: a step that needs 550 MiB and more, limited to 500Mi")
        bare_code = shop.run_limited("set_up", "default")
        yield Progress(text="local_oom: the same pipeline, the same limit")
        bare, first = shop.run("report", "oom", "report")
        yield _first_run(bare_code, bare, first)
        yield Progress(text="the same pipeline once more: the history knows the step now")
        (second,) = shop.run("oom", "report")
        yield _second_run(second, first)


def _first_run(bare_code: int, bare: Mapping[str, Any], ours: Mapping[str, Any]) -> Claim:
    attempts = _attempts(ours)
    told = ", then ".join(f"{a['memory']}: {a['outcome']}" for a in attempts)
    ends = (bare["status"] == "completed", ours["status"] == "completed")
    return Claim(
        what="a step that needs more memory than its limit of 500Mi",
        before=f"killed (exit code {bare_code}); the run stays {bare['status']!r} forever",
        after=f"run {ours['status']}, as the dashboard shows: {told}",
        holds=bare_code == SIGKILLED and ends == (False, True) and len(attempts) > 1,
    )


def _second_run(second: Mapping[str, Any], first: Mapping[str, Any]) -> Claim:
    before, after = (
        sum(a["outcome"] == "killed for memory" for a in _attempts(run)) for run in (first, second)
    )
    return Claim(
        what="kills in the next run of the same pipeline",
        before=f"{before} in the first run",
        after=f"{after}: it starts with {_attempts(second)[0]['memory']}",
        holds=second["status"] == "completed" and after < before,
    )


def _attempts(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    from zenml_ext.memory.records import ATTEMPTS

    return [attempt for step in report["attempts"] for attempt in step.get(ATTEMPTS, [])]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Workshop:
    """A folder with a ZenML of its own; the user's configuration is never touched."""

    folder: Path

    def environment(self, **variables: str) -> dict[str, str]:
        """The environment of a process that uses this ZenML, quietly."""
        inherited = settings.environment().items()
        kept = {k: v for k, v in inherited if not k.startswith(("ZENML_", "MLOPS_EXT_"))}
        return {
            **kept,
            "ZENML_CONFIG_PATH": str(self.folder / "config"),
            "ZENML_LOCAL_STORES_PATH": str(self.folder / "stores"),
            "ZENML_ANALYTICS_OPT_IN": "false",
            "ZENML_LOGGING_VERBOSITY": "ERROR",
            "AUTO_OPEN_DASHBOARD": "false",
            "MLOPS_EXT_MEMORY_HISTORY": str(self.folder / "history.sqlite"),
            **variables,
        }

    def run(self, *actions: str) -> list[dict[str, Any]]:
        """Run the pipeline's script; its reports.

        Raises:
            MlopsExtError: it failed.
        """
        done = subprocess.run(
            [sys.executable, "pipeline.py", *actions],
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
        )
        output = done.stdout
        if done.returncode:
            tail = (output + done.stderr).strip()[-2000:]
            raise MlopsExtError(f"the demo's pipeline failed ({' '.join(actions)}):\n{tail}")
        lines = output.splitlines()
        return [json.loads(line[7:]) for line in lines if line.startswith("REPORT ")]

    def run_limited(self, *actions: str) -> int:
        """Run the script under the step's own limit; its exit code."""
        from zenml_ext.local import process as _limited

        with (self.folder / "bare.log").open("wb") as log:
            ending = _limited.run(
                [sys.executable, str(self.folder / "pipeline.py"), *actions],
                environment=self.environment(PWD=str(self.folder)),
                limit=_LIMIT,
                stopping=threading.Event(),
                grace_s=1.0,
                output=log,
            )
        return ending.exit_code
