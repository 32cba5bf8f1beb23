"""``mlops-ext kserve``: the settings in force, and the manifest that fits them."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import get_args

import click

from kserve_ext.manifest import MODES, Extra, Kind


@click.group()
def kserve() -> None:
    """Model servers that start and stop without losing a request."""


@kserve.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def settings(*, as_json: bool) -> None:
    """Show the settings a server started here would use, and where each comes from."""
    from kserve_ext.settings import load

    resolved = load(argv=[])
    values = asdict(resolved.value)
    if as_json:
        click.echo(json.dumps({"values": values, "sources": dict(resolved.sources)}, indent=2))
        return
    for name, value in values.items():
        click.echo(f"{name:17} {value!s:6} from {resolved.sources[name]}")
    total = resolved.value.limits.total_s
    click.echo(
        f"A shutdown takes at most {total:.1f} s. Flags given to a server override these settings."
    )


@kserve.command(context_settings={"show_default": True})
@click.option("--lame-duck-s", type=float, help="Seconds of service after readiness says no.")
@click.option("--drain-s", type=float, help="Seconds for requests in flight after that.")
@click.option("--stop-s", type=float, help="Seconds for models and engines to stop.")
@click.option(
    "--kind",
    type=click.Choice(get_args(Kind), case_sensitive=False),
    default="inferenceservice",
    help="What to print; a Deployment is for clusters without KServe.",
)
@click.option(
    "--mode",
    type=click.Choice(list(MODES), case_sensitive=False),
    default="standard",
    help="KServe's deployment mode, by its older or newer name.",
)
@click.option(
    "--with",
    "extras",
    type=click.Choice(get_args(Extra)),
    multiple=True,
    help="What else runs in the pod; can be given several times.",
)
@click.option("--name", default="my-model", help="Name of the service.")
@click.option("--image", default="my-image", help="The container's image.")
def manifest(
    *, kind: Kind, mode: str, extras: tuple[Extra, ...], name: str, image: str, **given: float
) -> None:
    """Print the Kubernetes manifest that fits the settings, with the reason for each number."""
    from kserve_ext import manifest as manifests
    from kserve_ext.settings import load

    settings = load(given, argv=[]).value
    try:
        text = manifests.manifest(
            settings, name=name, image=image, kind=kind, mode=MODES[mode.lower()], extras=extras
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    click.echo(text, nl=False)
