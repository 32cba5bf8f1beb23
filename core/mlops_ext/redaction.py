"""Redact secrets from foreign errors before they reach logs, records and events."""

from __future__ import annotations

import re

from mlops_ext.settings import environment

_MASK = "***"
_IN_URL = re.compile(r"(?<=://)[^\s/@'\"]+:[^\s/@'\"]+(?=@)")
_TOKEN = re.compile(r"(?i)(?<=bearer )[\w.~+/=-]{8,}|\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*")
_NAMED = re.compile(
    r"(?i)([\"']?\w*(?:password|passwd|secret|token|api_?key)[\"']?\s*[:=]\s*[\"']?)([^\s\"',;}&]+)"
)
# A variable as a pod's manifest has it; API servers quote manifests in what they refuse.
_IN_MANIFEST = re.compile(
    r"(?i)([\"']name[\"']\s*:\s*[\"']\w*(?:password|passwd|secret|token|api_?key)\w*[\"']\s*,"
    r"\s*[\"']value[\"']\s*:\s*[\"'])([^\"']+)"
)
_SECRET_NAME = re.compile(r"(?i)password|passwd|secret|token|api_?key|credential")
# A shorter value would be found in words that have nothing to do with it.
_SHORTEST = 6


def redact(text: str) -> str:
    """*text* without passwords in URLs, tokens, and values of this process's secret variables."""
    for name, value in environment().items():
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name):
            text = text.replace(value, _MASK)
    text = _IN_URL.sub(_MASK, text)
    text = _TOKEN.sub(_MASK, text)
    text = _IN_MANIFEST.sub(rf"\1{_MASK}", text)
    return _NAMED.sub(rf"\1{_MASK}", text)


def redacted(error: BaseException) -> str:
    """*error* in one line that may be shown to anyone."""
    text = " ".join(str(error).split())
    return redact(f"{type(error).__name__}: {text}" if text else type(error).__name__)
