"""``mlops-ext demo``: the fixes at work on this machine, with figures before and after."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mlops_ext import demo as demos
from mlops_ext import files, tempdirs
from mlops_ext.demo import Claim
from mlops_ext.errors import UnknownNameError
from mlops_ext.extensions.discovery import extensions
from mlops_ext.hookspecs import PROJECT
from mlops_ext.settings import environment

# A demo that takes longer hangs: the slowest takes about a minute on two busy cores.
LIMIT_S = 600.0
# Time for a demo to clean up after SIGTERM before its process group is killed: ZenML's publishes
# that its run was stopped, and ends the step, in about 3 s.
GRACE_S = 10.0
# Lines of a failed demo's log that are shown: a traceback and what led to it.
LOG_LINES = 25


@dataclass(slots=True)
class Result:
    """The outcome of one demo."""

    name: str
    claims: list[Claim] = field(default_factory=list)
    status: int = 0
    log_tail: str = ""
    seconds: float = 0.0
    skipped: str = ""

    @property
    def good(self) -> bool:
        """Whether every claim of the demo holds, or the demo was skipped."""
        holds = self.status == 0 and bool(self.claims) and all(c.holds for c in self.claims)
        return bool(self.skipped) or holds


@click.command()
@click.option("--only", multiple=True, metavar="NAME", help="Show only this; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list, an object a demo.")
def demo(*, only: tuple[str, ...], as_json: bool) -> None:
    """Show the fixes at work on this machine; exit with 1 if a claim does not hold.

    The demo of a framework that is not installed is skipped: one line says what to install.
    """
    known = demos.names()
    for name in only:
        if name not in known:
            raise UnknownNameError("demo", name, known)
    chosen = list(only) or known
    # A supervisor's TERM and a terminal's hang-up must clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    console = Console(stderr=as_json)
    absent = _absent()
    running = ", ".join(name for name in chosen if name not in absent) or "nothing"
    _print_line(console, "running", f"{running}; Ctrl-C stops, and leaves nothing behind")
    try:
        results = list(_show(chosen, absent, console))
    except KeyboardInterrupt:
        console.print("[yellow]interrupted; everything the demo started is gone[/]")
        sys.exit(130)
    if as_json:
        click.echo(json.dumps([asdict(result) for result in results], indent=2))
    else:
        console.print(verdict(results))
    sys.exit(0 if results and all(result.good for result in results) else 1)


def _absent() -> dict[str, str]:
    """What to install, by the name of each framework whose demo cannot be shown."""
    extras = importlib.metadata.metadata(PROJECT).get_all("Provides-Extra", ())
    absent = {}
    for support in extensions().frameworks():
        name, package = support.framework.name, support.framework.distribution
        wanted = package + support.framework.supported
        if not support.supported:
            absent[name] = (
                f"{package} {support.version or 'is not installed'}, and {wanted} is needed; run:"
                f" pip install '{f'mlops-ext[{name}]' if name in extras else wanted}'"
            )
    return absent


def _show(chosen: list[str], absent: dict[str, str], console: Console) -> Iterator[Result]:
    for number, name in enumerate(chosen, start=1):
        title = f"{name} ({number}/{len(chosen)})"
        if name in absent:
            _print_line(console, f"{title}: skipped", absent[name])
            yield Result(name, skipped=absent[name])
            continue
        result = _run(name, functools.partial(_print_line, console, title))
        draw(result, console)
        yield result


def _print_line(console: Console, title: str, text: str) -> None:
    """Print a line for each thing begun, however long."""
    console.print(f"{title}: {text}", markup=False, highlight=False, soft_wrap=True)


def _run(name: str, tell: Callable[[str], None]) -> Result:
    """Run one demo in a process, a session and a temporary directory of its own."""
    result = Result(name)
    started = time.monotonic()
    home = Path(tempfile.mkdtemp(prefix=f"mlops-ext-demo-{name}-", dir=tempdirs.root()))
    log_path = home / "log.txt"
    try:
        with log_path.open("wb") as log, _started(name, home, log) as process:
            timer = threading.Timer(LIMIT_S, _end, [process])
            timer.start()
            try:
                for line in process.stdout or ():
                    event = demos.read_event(line)
                    if isinstance(event, Claim):
                        result.claims.append(event)
                    else:
                        tell(event.text)
                result.status = process.wait()
            except KeyboardInterrupt:
                tell("interrupted: cleaning up")
                raise
            finally:
                timer.cancel()
        if result.status:
            lines = log_path.read_text(encoding="utf-8", errors="replace").splitlines()
            result.log_tail = "\n".join(lines[-LOG_LINES:])
    finally:
        files.remove(home)
    result.seconds = time.monotonic() - started
    return result


@contextlib.contextmanager
def _started(name: str, home: Path, log: IO[bytes]) -> Iterator[subprocess.Popen[str]]:
    """Start the demo called *name*; kill its whole session at the end of the block."""
    scratch = home / "tmp"
    scratch.mkdir()
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops_ext.demo", name],
        env={**environment(), **places, "PYTHONWARNINGS": "ignore"},
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Terminate *process*, then kill its process group; a second Ctrl-C kills at once."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(GRACE_S)
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def draw(result: Result, console: Console) -> None:
    """Show the outcome of a demo."""
    title = f"{escape(result.name)}  ({result.seconds:.0f} s)"
    table = Table(title=title, title_justify="left")
    for column in ("shown", "before", "with mlops-ext", "holds"):
        table.add_column(column, overflow="fold")
    for claim in result.claims:
        holds = "[green]yes[/]" if claim.holds else "[red]NO[/]"
        table.add_row(*map(escape, (claim.what, claim.before, claim.after)), holds)
    if result.claims:
        console.print(table)
    if result.status:
        name = escape(result.name)
        console.print(
            f"[red]the demo {name} ended with status {result.status}[/]; its log ends with:"
        )
        console.print(result.log_tail, markup=False, highlight=False)


def verdict(results: list[Result]) -> str:
    """The last line: what held, and what to try next."""
    claims = [claim for result in results for claim in result.claims]
    held = sum(claim.holds for claim in claims)
    if not claims and all(result.skipped for result in results):
        return "nothing to show: no framework is installed"
    if not all(result.good for result in results):
        broken = [escape(r.name) for r in results if r.status or not (r.claims or r.skipped)]
        unfinished = f"; not finished: {', '.join(broken)}" if broken else ""
        return f"[red]{held} of {len(claims)} claims hold{unfinished}[/]"
    return (
        f"[green]all {held} claims hold on this machine[/]\n"
        "next: mlops-ext doctor (what your versions need),"
        " mlops-ext run -- CMD (your own program, patched)"
    )
