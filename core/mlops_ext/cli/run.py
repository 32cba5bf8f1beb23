"""``mlops-ext run``: a command, and every Python it starts, with the patches switched on."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

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

    Signals and the exit status pass through. A Python started with -I, -E or -S, by sudo or in
    another container does not see the patches and runs without them.
    """
    child = child_environment(_triggers(patches))
    path = _find(command[0], child.get("PATH"))
    if path is None:
        click.echo(f"mlops-ext: command not found: {command[0]}", err=True)
        sys.exit(127)
    option = _isolating_option(path, command)
    if option:
        click.echo(f"mlops-ext: {command[0]} runs without patches, because of {option}", err=True)
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

    If the settings cannot be read, the command runs without patches.
    """
    try:
        for name in patches:
            support = extensions().framework(name)
            if support.version is None:
                what = f"{support.framework.distribution} is not installed in {sys.prefix}"
                click.echo(f"mlops-ext: {what}: --patch {name} changes nothing there", err=True)
        names = patches or tuple(s.framework.name for s in extensions().frameworks() if s.supported)
        return [activation.trigger_of(name) for name in names]
    except SettingsError as error:
        click.echo(f"mlops-ext: the command runs without patches: {error}", err=True)
        return []


_PYTHON = re.compile(r"(python|pypy)[\d.]*(\.exe)?")
# Letters of one word, and the one that takes the rest of it or the next word as its value.
_SHORT_OPTIONS = re.compile(r"-([a-zA-Z]*?)([cmWX]|$)")


def _isolating_option(path: str, command: tuple[str, ...]) -> str | None:
    """The option with which a Python ignores PYTHONPATH or ``sitecustomize``, or None.

    It is looked for in the command, and in the first line of the script that *path* is.
    """
    words = list(command)
    with suppress(OSError), Path(path).open("rb") as file:
        first = file.readline(256)
        if first.startswith(b"#!"):
            words = [*os.fsdecode(first[2:]).split(), *words]
    if not words or not _PYTHON.fullmatch(Path(words[0]).name):
        return None
    for word in words[1:]:
        found = _SHORT_OPTIONS.match(word)
        if found is None:
            return None
        if set(found[1]) & set("IES"):
            return word
        if found[2] in {"c", "m"}:
            return None
    return None


def _become(path: str, command: list[str], child: dict[str, str]) -> None:
    """Replace this process by the command; a script without ``#!`` is run by ``/bin/sh``."""
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
    """Find *program* on *path*; a name with a folder is returned as it is, if it exists."""
    if Path(program).name != program and os.path.lexists(program):
        return program
    return shutil.which(program, path=path)


def _restore_signals() -> None:
    """Restore the default action of signals that Python ignores, as `subprocess` does.

    Whether the caller had them ignored too cannot be told: Python has overwritten that.
    """
    for name in ("SIGPIPE", "SIGXFSZ"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)


def _supervise(command: list[str], child: dict[str, str]) -> int:
    """Run *command* where a process cannot become another (Windows), and return its status.

    The console sends its events to the child too, so that ours only has to outlive it.
    """
    for name in ("SIGINT", "SIGBREAK"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), lambda _signum, _frame: None)
    return subprocess.run(command, env=child, check=False).returncode
