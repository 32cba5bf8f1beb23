"""Kubernetes manifests that fit the settings: the files of ``manifests/``, with the numbers in.

In such a file, a line ``#: standard agent`` keeps what follows only if all of these words hold, and
``#:`` keeps it always. A line that is a name alone, ``$container``, stands for another file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import textwrap
from collections.abc import Collection
from pathlib import Path
from string import Template
from typing import Literal

from kserve_ext.settings import KUBERNETES_GRACE_S, KServeSettings

FILES = Path(__file__).with_name("manifests")
PROBE_PERIOD_S = 2  # two failed probes within the default lame_duck_s of 5 s
MOST_FAILURES = 3
"""Failed readiness probes at most, Kubernetes' default: more keep a sick pod in traffic."""
MARGIN_S = 1  # for the start of the container's termination and the end of the interpreter
AGENT_QUIET_S = 30
"""KServe's agent (batcher, logger) ends when no request has come for so long: its cmd/agent."""
BATCH_LATENCY_S = 0.5
"""How long a request may wait in the batcher; the lame duck is that much longer."""

Kind = Literal["inferenceservice", "servingruntime", "deployment"]
Mode = Literal["standard", "serverless"]
Extra = Literal["istio", "batcher", "logger"]
AGENT = frozenset({"batcher", "logger"})
MODES: dict[str, Mode] = {
    "standard": "standard",
    "rawdeployment": "standard",
    "serverless": "serverless",
    "knative": "serverless",
}
"""KServe's deployment modes by all their names; its later releases renamed both."""


def grace_s(settings: KServeSettings, *, agent: bool = False) -> int:
    """TerminationGracePeriodSeconds that covers a whole shutdown, at least Kubernetes' 30.

    Args:
        settings: the server's.
        agent: whether KServe's agent runs in the pod, which is to end by itself, too.
    """
    agent_s = settings.lame_duck_s + max(settings.drain_s, AGENT_QUIET_S) if agent else 0.0
    return max(KUBERNETES_GRACE_S, math.ceil(max(settings.limits.total_s, agent_s)) + MARGIN_S)


def manifest(
    settings: KServeSettings,
    *,
    name: str = "my-model",
    image: str = "my-image",
    kind: Kind = "inferenceservice",
    mode: Mode = "standard",
    extras: Collection[Extra] = (),
) -> str:
    """The manifest for a model server with *settings*, as YAML.

    In mode "serverless" the lame duck is 0: Knative's queue-proxy drains before the container gets
    SIGTERM, and Knative refuses terminationGracePeriodSeconds on a pod template.

    Args:
        settings: the server's.
        name: of the service.
        image: of its container.
        kind: an InferenceService, a ServingRuntime with an InferenceService that uses it, or a
            Deployment with a Service, for clusters without KServe.
        mode: KServe's deployment mode.
        extras: what else runs in the pod.

    Raises:
        ValueError: a Deployment cannot be serverless, nor have KServe's batcher or logger.
    """
    if kind == "deployment" and (mode == "serverless" or AGENT.intersection(extras)):
        raise ValueError("a Deployment is not serverless, and has no batcher or logger of KServe")
    batch_s = BATCH_LATENCY_S if "batcher" in extras else 0.0
    lame_duck_s = 0.0 if mode == "serverless" else settings.lame_duck_s + batch_s
    settings = dataclasses.replace(settings, lame_duck_s=lame_duck_s)
    failures = min(MOST_FAILURES, max(1, int(lame_duck_s // PROBE_PERIOD_S)))
    noticed = failures * PROBE_PERIOD_S <= lame_duck_s
    agent = bool(AGENT.intersection(extras))
    facts = {kind, mode, *extras, "noticed" if noticed else "unnoticed", "agent" if agent else ""}
    values = {
        "name": json.dumps(name),
        "runtime": json.dumps(f"{name}-runtime"),
        "image": json.dumps(image),
        "environment": _environment(settings),
        "failures": failures,
        "period": PROBE_PERIOD_S,
        "grace": grace_s(settings, agent=agent),
        "margin": MARGIN_S,
        "agent": AGENT_QUIET_S,
        "sidecar": math.ceil(lame_duck_s + settings.drain_s + settings.refuse_s),
        "latency": int(BATCH_LATENCY_S * 1000),
        **{each: f"{getattr(settings, each):g}" for each in ("lame_duck_s", "drain_s", "stop_s")},
    }
    return _filled("deployment" if kind == "deployment" else "inferenceservice", facts, values)


def _environment(settings: KServeSettings) -> str:
    """The entries of ``env``: the three times, and each setting that differs from its default."""
    default, lines = KServeSettings(), []
    for name, value in dataclasses.asdict(settings).items():
        if name in {"lame_duck_s", "drain_s", "stop_s"} or value != getattr(default, name):
            text = f"{value:g}" if isinstance(value, float) else value
            lines += [f"    - name: MLOPS_EXT_KSERVE_{name.upper()}", f'      value: "{text}"']
    return "\n".join(lines)


def _filled(file: str, facts: Collection[str], values: dict[str, object]) -> str:
    """The text of *file*: what *facts* keep of it, *values* and other files put in."""
    lines, kept = [], True
    for line in (FILES / f"{file}.yaml").read_text(encoding="utf-8").splitlines():
        word = line.strip()
        if word.startswith("#:"):
            kept = set(word.split()[1:]) <= set(facts)
        elif kept and word.startswith("$") and (FILES / f"{word[1:]}.yaml").is_file():
            indent = line[: line.index("$")]
            lines.append(textwrap.indent(_filled(word[1:], facts, values), indent).rstrip())
        elif kept:
            lines.append(Template(line).substitute(values))
    return "\n".join(lines) + "\n"
