"""``mlops-ext run``: a command, and every Python it starts, with the patches switched on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

import click

from mlops_ext.errors import SettingsError
from mlops_ext.extensions import activation
from mlops_ext.extensions.discovery import extensions
from mlops_ext.settings import environment

_BOOTSTRAP = Path(__file__).resolve().parents[1] / "extensions" / "bootstrap"


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--patch",
    "patches",
    multiple=True,
    metavar="NAME",
    help="Framework to patch; may be repeated. Default: every supported framework found.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(*, patches: tuple[str, ...], command: tuple[str, ...]) -> None:
    """Run COMMAND with the patches switched on, in it and in every Python it starts.

    Signals and the exit status pass through. Interpreters started with -I or -E ignore
    PYTHONPATH and go unpatched.
    """
    child = child_environment(_triggers(patches))
    path = _find(command[0], child.get("PATH"))
    if path is None:
        click.echo(f"mlops-ext: command not found: {command[0]}", err=True)
        sys.exit(127)
    try:
        if os.name == "posix":
            _restore_signals()
            _become(path, list(command), child)
        sys.exit(_supervise([path, *command[1:]], child))
    except OSError as error:
        click.echo(f"mlops-ext: cannot run {path}: {error.strerror}", err=True)
        sys.exit(126)


def _triggers(patches: tuple[str, ...]) -> list[str]:
    """What to arm: *patches*, by default every supported framework found.

    Settings that cannot be read keep nobody's command from running; it runs without patches.
    """
    try:
        names = patches or tuple(s.framework.name for s in extensions().frameworks() if s.supported)
        return [activation.trigger_of(name) for name in names]
    except SettingsError as error:
        click.echo(f"mlops-ext: the command runs without patches: {error}", err=True)
        return []


def _become(path: str, command: list[str], child: dict[str, str]) -> None:
    """Let our process become the command; a script without ``#!`` is the shell's, as in a shell."""
    try:
        os.execve(path, command, child)  # noqa: S606  # the command's own words, no shell
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        os.execve("/bin/sh", ["/bin/sh", path, *command[1:]], child)  # noqa: S606  # as above


def child_environment(triggers: list[str]) -> dict[str, str]:
    """This process's environment with the bootstrap first on PYTHONPATH and *triggers* armed."""
    child = dict(environment())
    armed = [*filter(None, child.get("MLOPS_EXT_AUTOPATCH", "").split(",")), *triggers]
    child["MLOPS_EXT_AUTOPATCH"] = ",".join(dict.fromkeys(armed))
    path = child.get("PYTHONPATH", "")
    bootstrap = str(_BOOTSTRAP)
    # An empty entry stands for the current directory, and an empty variable for none.
    others = [entry for entry in path.split(os.pathsep) if entry != bootstrap] if path else []
    child["PYTHONPATH"] = os.pathsep.join([bootstrap, *others])
    return child


def _find(program: str, path: str | None) -> str | None:
    """Where *program* is, or None; one that was named with a folder is left to the system."""
    if Path(program).name != program and os.path.lexists(program):
        return program
    return shutil.which(program, path=path)


def _restore_signals() -> None:
    """Give back their default to the signals that Python ignores: an ignored one stays so."""
    for name in ("SIGPIPE", "SIGXFSZ"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def _supervise(command: list[str], child: dict[str, str]) -> int:
    """Run *command* where a process cannot become another (Windows), and return its status.

    The console sends its events to the child too, so that ours only has to outlive it.
    """

    def leave_it_to_the_child(_signum: int, _frame: FrameType | None) -> None:
        return

    for name in ("SIGINT", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), leave_it_to_the_child)
    return subprocess.run(command, env=child, check=False).returncode
