"""The settings of the KServe extension, and the flags that carry them."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from mlops_ext.errors import SettingsError, UnknownSettingError
from mlops_ext.settings import Resolved, environment, resolve
from mlops_ext.shutdown import Limits

SECTION = "kserve"  # table ``[tool.mlops-ext.kserve]``, variables ``MLOPS_EXT_KSERVE_...``

KUBERNETES_GRACE_S = 30  # its default terminationGracePeriodSeconds
QUEUE_PROXY_QUIET_S = 0.5  # quiet_s behind Knative's queue-proxy, unless it is set
SecondSignal = Literal["auto", "end", "ignore"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KServeSettings:
    """How a model server ends.

    Attributes:
        lame_duck_s: seconds of normal service after readiness says no. 5: endpoints leave
            kube-proxy and gateways 1-3 s after a pod is marked as terminating.
        drain_s: seconds for requests in flight after that. 15: with lame_duck_s and stop_s it
            stays below Kubernetes' terminationGracePeriodSeconds of 30.
        refuse_s: seconds for the answers to requests that are refused at the deadline to leave.
        stop_s: seconds for models, engines and clients to stop. 8: an engine that frees a GPU or
            leaves its cluster takes several.
        abort_s: seconds, besides stop_s, for a server that is still starting. 0.8: it
            has no client yet.
        quiet_s: the lame duck ends early once no request has come for so many seconds. 0, never:
            a balancer that has not noticed yet may send the next one late. In a Knative pod 0.5:
            queue-proxy has drained before the server gets a signal.
        second_signal: whether a second signal ends the process at once. auto: SIGINT does;
            SIGTERM and SIGQUIT do, but not as PID 1 nor in Kubernetes, where kubelets and
            sidecars repeat themselves.
        worker_timeout_s: a worker that gives no sign of life for so long, and uses no CPU
            meanwhile, is replaced; 0: never. 60: longer than a page fault storm.
        keep_alive_s: seconds that KServe before 0.18 keeps an idle connection open; 0: uvicorn's
            own 5. 65, as KServe 0.18 has it: longer than the pools of gateways (60).
        unload_s: seconds that a model has for its requests in flight before it is unloaded, or
            loaded anew; 0: it is at once, as KServe does. 15, as drain_s.
    """

    lame_duck_s: float = 5.0
    drain_s: float = 15.0
    refuse_s: float = 0.3
    stop_s: float = 8.0
    abort_s: float = 0.8
    quiet_s: float = 0.0
    second_signal: SecondSignal = "auto"
    worker_timeout_s: float = 60.0
    keep_alive_s: float = 65.0
    unload_s: float = 15.0

    def __post_init__(self) -> None:
        """Refuse what is not a time, by the setting's name."""
        for name in _TIMES:
            value = getattr(self, name)
            if not 0 <= value < math.inf:
                raise SettingsError(f"{SECTION}.{name}", value, "a number of seconds, 0 or more")

    @property
    def limits(self) -> Limits:
        """The same as limits of a shutdown."""
        names = {field.name for field in dataclasses.fields(Limits)}.intersection(_TIMES)
        return Limits(**{name: getattr(self, name) for name in names})


NAMES = tuple(field.name for field in dataclasses.fields(KServeSettings))
_TIMES = tuple(name for name in NAMES if name.endswith("_s"))


def load(
    arguments: Mapping[str, object] | None = None, argv: Sequence[str] | None = None
) -> Resolved[KServeSettings]:
    """The settings in force, and where each came from.

    Warns of environment variables that look like a setting and are none.

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
    flags = {name: getattr(given, flag_of(name)[2:]) for name in NAMES}
    prefix = f"MLOPS_EXT_{SECTION}_".upper()
    for variable in environment():
        name = variable.upper().removeprefix(prefix).lower()
        if variable.upper().startswith(prefix) and name not in NAMES:
            unknown = UnknownSettingError(variable, name, list(NAMES))
            warnings.warn(str(unknown), RuntimeWarning, stacklevel=2)
    resolved = resolve(KServeSettings, SECTION, arguments=arguments, flags=flags)
    if "K_REVISION" in environment() and resolved.sources["quiet_s"] == "default":  # Knative's pod
        value = dataclasses.replace(resolved.value, quiet_s=QUEUE_PROXY_QUIET_S)
        return Resolved(value=value, sources={**resolved.sources, "quiet_s": "K_REVISION"})
    return resolved


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting to *parser*; a no-op where it has them.

    They are ``--lame_duck_s``, ``--drain_s``, and ``--mlops_ext_stop_s`` and so on: short names
    are left to the user's own parser, which has KServe's as its parent.
    """
    known = {option for action in parser._actions for option in action.option_strings}  # noqa: SLF001  # argparse has no look-up
    # Of each setting what the docstring says in its first sentence.
    text = " ".join((KServeSettings.__doc__ or "").split())
    helps = dict(re.findall(rf"\b({'|'.join(NAMES)}): (.*?)\. ", text))
    defaults = KServeSettings()
    for name in NAMES:
        if (flag := flag_of(name)) in known:
            continue
        text = f"{helps.get(name, name)} (mlops-ext; default {getattr(defaults, name)})."
        names = (flag, f"--{flag[2:].replace('_', '-')}")
        kind: Any = {"type": float} if name in _TIMES else {"choices": get_args(SecondSignal)}
        parser.add_argument(*names, dest=flag[2:], help=text, **kind)


def flag_of(name: str) -> str:
    """The flag of the setting *name*."""
    return f"--{name}" if name in {"lame_duck_s", "drain_s"} else f"--mlops_ext_{name}"
