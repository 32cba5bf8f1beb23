"""Finds out what steps of one code need: one of them runs apart from the others, and they wait."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from mlops_ext.memory import Quantity
from zenml_ext.kubernetes.client import KubeApi
from zenml_ext.kubernetes.objects.diagnosis import diagnose
from zenml_ext.kubernetes.objects.state import AttemptState


class SizingRuns:
    """Of each code the step that runs apart, and the largest use that such a step has shown."""

    def __init__(self) -> None:
        self._bases: dict[str, str] = {}
        self._peaks: dict[str, Quantity] = {}
        self._lock = threading.Lock()

    def peak(self, state: AttemptState) -> Quantity | None:
        """What a step of the same code needed; None if nobody knows."""
        return self._peaks.get(state.code_key)

    def begin(self, state: AttemptState) -> str | None:
        """Let the step run apart; or the Job of the one that does so already."""
        with self._lock:
            base = self._bases.setdefault(state.code_key, state.base)
        return None if base == state.base else base

    def end(self, api: KubeApi, job: Mapping[str, Any], state: AttemptState) -> None:
        """Note what a step that ran apart and completed has needed."""
        if not state.isolated or self._bases.get(state.code_key) != state.base:
            return
        peak = diagnose(job, api.pods_of(job["metadata"]["name"])).evidence.peak
        with self._lock:
            if peak is not None:
                self._peaks[state.code_key] = max(peak, self._peaks.get(state.code_key, peak))
            self._bases.pop(state.code_key, None)
