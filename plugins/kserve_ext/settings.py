"""The settings of the KServe extension, and the flags that carry them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlops_ext.errors import SettingsError
from mlops_ext.settings import Resolved, resolve
from mlops_ext.shutdown import Limits

SECTION = "kserve"
"""Table ``[tool.mlops-ext.kserve]``, variables ``MLOPS_EXT_KSERVE_...``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KServeSettings:
    """How a model server ends."""

    lame_duck_s: float = 5.0
    """Seconds of normal service after readiness says no. 5: endpoints leave kube-proxy and
    gateways 1-3 s after a pod is marked as terminating, and probes come every few seconds."""
    drain_s: float = 20.0
    """Seconds for requests in flight after that. 20: with lame_duck_s, the last second and the
    start of the container's shutdown it stays below Kubernetes' terminationGracePeriodSeconds."""

    def __post_init__(self) -> None:
        """Refuse what is not a time, by the setting's name."""
        for name in ("lame_duck_s", "drain_s"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise SettingsError(f"{SECTION}.{name}", value, "a number of seconds, 0 or more")

    @property
    def limits(self) -> Limits:
        """The same as limits of a shutdown."""
        return Limits(lame_duck_s=self.lame_duck_s, drain_s=self.drain_s)


def load(
    arguments: Mapping[str, object] | None = None, argv: Sequence[str] | None = None
) -> Resolved[KServeSettings]:
    """The settings in force, and where each came from.

    Args:
        arguments: what the code gave; None means not given.
        argv: the command line, by default the process's; other flags in it are ignored.

    Raises:
        SettingsError: a value cannot be used.
    """
    own = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_flags(own)
    try:
        given, _ = own.parse_known_args(sys.argv[1:] if argv is None else argv)
    except argparse.ArgumentError as error:
        raise SettingsError(error.argument_name or "flag", error.message, "a number") from error
    return resolve(KServeSettings, SECTION, arguments=arguments, flags=vars(given))


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--lame_duck_s`` and ``--drain_s`` to *parser*; a no-op where it has them."""
    known = {option for action in parser._actions for option in action.option_strings}  # noqa: SLF001  # argparse has no look-up
    texts = {
        "lame_duck_s": "Seconds of normal service after readiness says no (mlops-ext; default 5).",
        "drain_s": "Seconds for requests in flight after that (mlops-ext; default 20).",
    }
    for name, text in texts.items():
        if f"--{name}" not in known:
            parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=float, help=text)
