"""The extension's command group."""

import click


@click.group()
def acme():
    """Commands for acme."""


@acme.command()
def hello():
    """Say hello."""
    click.echo("hello from acme")
