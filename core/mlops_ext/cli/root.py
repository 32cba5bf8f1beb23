"""The root command: its own commands and the extensions', each imported when it is called.

Nothing heavier than click is imported here, so that ``mlops-ext --help`` answers at once.
"""

from __future__ import annotations

import errno
import importlib
import importlib.metadata
import io
import sys
from typing import Any

import click

from mlops_ext import __version__, settings
from mlops_ext.errors import MissingExtraError, MlopsExtError, nearest
from mlops_ext.extensions.entry_points import find_entry_points

_OWN = {
    "list": ("mlops_ext.cli.list:list_frameworks", "Show the frameworks found and their support."),
    "doctor": ("mlops_ext.cli.doctor:doctor", "Show every fix: needed, active, and why."),
    "run": ("mlops_ext.cli.run:run", "Run a command with the patches switched on."),
    "demo": ("mlops_ext.cli.demo:demo", "Show the fixes at work on this machine."),
}


class _Lazy(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands, our own first."""
        del ctx
        return [*_OWN, *sorted(_extension_commands())]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command called *cmd_name*, imported; an unknown name suggests the nearest."""
        if cmd_name in _OWN:
            module, _, attribute = _OWN[cmd_name][0].partition(":")
            return _as_command(getattr(importlib.import_module(module), attribute))
        points = _extension_commands()
        if cmd_name not in points:
            near = nearest(cmd_name, self.list_commands(ctx))
            hint = f"did you mean {near!r}?" if near else "see mlops-ext --help"
            raise click.UsageError(f"no command is named {cmd_name!r}; {hint}", ctx)
        try:
            return _as_command(points[cmd_name].load())
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # plugin boundary: one clear line
            raise click.ClickException(
                f"the commands of {cmd_name} cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; if a package that its extension needs is missing, say what brings it."""
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            name, extras = str(ctx.invoked_subcommand), importlib.metadata.metadata("mlops-ext")
            if isinstance(error, MlopsExtError) or name not in extras.get_all("Provides-Extra", ()):
                raise
            raise MissingExtraError(error.name or name, name) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their help, without importing any of them."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _OWN.items()])
        rows = [(name, f"Commands for {name}.") for name in sorted(_extension_commands())]
        if rows:
            with formatter.section("Extensions"):
                formatter.write_dl(rows)


def _as_command(loaded: Any) -> click.Command:
    if not isinstance(loaded, click.Command):
        raise TypeError(f"{loaded!r} is not a click command")
    return loaded


def _extension_commands() -> dict[str, importlib.metadata.EntryPoint]:
    """The entry points of the enabled extensions' command groups, by name."""
    try:
        disabled = settings.load(settings.CoreSettings).disable
    except MlopsExtError:  # told by every command that needs settings
        disabled = ()
    points = find_entry_points("mlops_ext.commands")
    return {name: points[name] for name in points.keys() - {*_OWN, *disabled}}


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mlops-ext")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, to standard error.")
def root(*, verbose: bool) -> None:
    """Production fixes for the MLOps frameworks you already run."""
    if verbose:
        import logging

        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(name)s: %(message)s")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; print an error of ours, or of a full disk, as one line, and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # An arrow that the terminal's or file's encoding lacks must not end a command.
            stream.reconfigure(errors="replace")
    try:
        root(args=arguments, prog_name="mlops-ext")
    except (MlopsExtError, OSError) as error:
        if getattr(error, "errno", None) not in {None, errno.ENOSPC, errno.EDQUOT}:
            raise
        click.echo(f"mlops-ext: {error}", err=True)
        sys.exit(getattr(error, "exit_status", 1))
