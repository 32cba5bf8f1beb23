"""The Kubernetes manifest that fits the settings, with the reason for each number in it."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Literal

from kserve_ext.settings import KServeSettings

PROBE_PERIOD_S = 2
"""Two failed probes within the default lame_duck_s of 5 s."""
MOST_FAILURES = 3
"""Failed readiness probes at most, Kubernetes' default: more keep a sick pod in traffic."""
MARGIN_S = 1
"""For the start of the container's termination and the end of the interpreter."""

Mode = Literal["standard", "serverless"]
MODES: dict[str, Mode] = {
    "standard": "standard",
    "rawdeployment": "standard",
    "serverless": "serverless",
    "knative": "serverless",
}
"""KServe's deployment modes by all their names; its later releases renamed both."""
ANNOTATIONS: dict[Mode, str] = {"standard": "RawDeployment", "serverless": "Serverless"}
"""The names of ``serving.kserve.io/deploymentMode`` that every supported release takes."""


def grace_s(settings: KServeSettings) -> int:
    """TerminationGracePeriodSeconds that covers a whole shutdown, at least Kubernetes' 30."""
    return max(30, math.ceil(settings.limits.total_s) + MARGIN_S)


def manifest(
    settings: KServeSettings,
    *,
    name: str = "my-model",
    image: str = "my-image",
    mode: Mode = "standard",
) -> str:
    """An InferenceService for a model server with *settings*.

    In mode "serverless" the lame duck is 0: Knative's queue-proxy drains before the container gets
    SIGTERM, and Knative refuses terminationGracePeriodSeconds on a pod template.
    """
    if mode == "serverless":
        settings = dataclasses.replace(settings, lame_duck_s=0.0)
    return f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {json.dumps(name)}
  annotations:
    serving.kserve.io/deploymentMode: {ANNOTATIONS[mode]}
spec:
  predictor:
{_grace(settings, mode)}\
    containers:
      - name: kserve-container
        image: {json.dumps(image)}
        # exec form: the server is PID 1 and gets SIGTERM itself, not a shell that drops it.
        command: ["python", "server.py"]
        env:
          - name: MLOPS_EXT_KSERVE_LAME_DUCK_S
            value: "{settings.lame_duck_s:g}"
          - name: MLOPS_EXT_KSERVE_DRAIN_S
            value: "{settings.drain_s:g}"
          - name: MLOPS_EXT_KSERVE_STOP_S
            value: "{settings.stop_s:g}"
{_readiness(settings, mode)}\
        livenessProbe:
          # Stays 200 while the server drains: a restart would cut requests off.
          httpGet:
            path: /
            port: 8080
          periodSeconds: 10
          failureThreshold: 3
"""


def _grace(settings: KServeSettings, mode: Mode) -> str:
    if mode == "serverless":
        return f"""\
    # Knative's timeoutSeconds: for a request, and for the pod's end. drain_s {settings.drain_s:g} \
+ stop_s {settings.stop_s:g} + {MARGIN_S} s margin, and never below 30.
    timeout: {grace_s(settings)}
"""
    return f"""\
    # lame_duck_s {settings.lame_duck_s:g} + drain_s {settings.drain_s:g} \
+ stop_s {settings.stop_s:g} + {MARGIN_S} s margin, and never below Kubernetes' own 30.
    terminationGracePeriodSeconds: {grace_s(settings)}
"""


def _readiness(settings: KServeSettings, mode: Mode) -> str:
    failures = min(MOST_FAILURES, max(1, int(settings.lame_duck_s // PROBE_PERIOD_S)))
    in_time = failures * PROBE_PERIOD_S <= settings.lame_duck_s
    if mode == "serverless":
        why = "No lame duck: queue-proxy has drained before the server gets SIGTERM."
    elif in_time:
        why = (
            'No preStop sleep: it would only delay SIGTERM, and with it the answer "not ready".\n'
            "        # The server itself goes on serving for lame_duck_s after the signal."
        )
    else:
        why = (
            "lame_duck_s is shorter than probes take to notice: only who watches endpoints\n"
            "        # has left before accepting ends."
        )
    noticed = (
        f"{failures} failed probes, {PROBE_PERIOD_S} s apart: who only looks at readiness has "
        "left before accepting ends."
        if in_time
        else "One failed probe takes the pod out of traffic."
    )
    return f"""\
        # {why}
        readinessProbe:
          httpGet:
            path: /v2/health/ready
            port: 8080
          # {noticed}
          periodSeconds: {PROBE_PERIOD_S}
          failureThreshold: {failures}
          # Twice the longest pause of a CPU-bound model, which delays every answer.
          timeoutSeconds: 2
"""
