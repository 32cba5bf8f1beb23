"""The Kubernetes manifest that fits the settings, with the reason for each number in it."""

from __future__ import annotations

import math

from kserve_ext.settings import KServeSettings

PRE_STOP_S = 0
"""No preStop sleep: the server itself goes on serving for lame_duck_s after SIGTERM."""
PROBE_PERIOD_S = 2
"""Two failed probes within the default lame_duck_s of 5 s."""
MARGIN_S = 1
"""For the start of the container's termination and the end of the interpreter."""


def grace_s(settings: KServeSettings) -> int:
    """TerminationGracePeriodSeconds that covers a whole shutdown, at least Kubernetes' 30."""
    return max(30, math.ceil(settings.limits.total_s) + PRE_STOP_S + MARGIN_S)


def manifest(settings: KServeSettings, *, name: str = "my-model", image: str = "my-image") -> str:
    """An InferenceService for a model server with *settings*."""
    failures = max(1, int(settings.lame_duck_s // PROBE_PERIOD_S))
    return f"""\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    # lame_duck_s {settings.lame_duck_s:g} + drain_s {settings.drain_s:g} \
+ stop_s {settings.stop_s:g} + {MARGIN_S} s margin, and never below Kubernetes' own 30.
    terminationGracePeriodSeconds: {grace_s(settings)}
    containers:
      - name: kserve-container
        image: {image}
        # exec form: the server is PID 1 and gets SIGTERM itself, not a shell that drops it.
        command: ["python", "server.py"]
        env:
          - name: MLOPS_EXT_KSERVE_LAME_DUCK_S
            value: "{settings.lame_duck_s:g}"
          - name: MLOPS_EXT_KSERVE_DRAIN_S
            value: "{settings.drain_s:g}"
          - name: MLOPS_EXT_KSERVE_STOP_S
            value: "{settings.stop_s:g}"
        # No preStop sleep: it would only delay SIGTERM, and with it the answer "not ready".
        # The server itself goes on serving for lame_duck_s after the signal.
        readinessProbe:
          httpGet:
            path: /v2/health/ready
            port: 8080
          # {failures} failed probes, {PROBE_PERIOD_S} s apart: who only looks at readiness has \
left before accepting ends.
          periodSeconds: {PROBE_PERIOD_S}
          failureThreshold: {failures}
          # Twice the longest pause of a CPU-bound model, which delays every answer.
          timeoutSeconds: 2
        livenessProbe:
          # Stays 200 while the server drains: a restart would cut requests off.
          httpGet:
            path: /
            port: 8080
          periodSeconds: 10
          failureThreshold: 3
"""
