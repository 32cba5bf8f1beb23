"""The ``resize`` subresource of the pod this process runs in (Kubernetes 1.33 and later).

Plain HTTP with the pod's own service account: the kubernetes client knows the subresource only
from version 32 on, and images carry 25.
"""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_ext.memory import Quantity
from mlops_ext.settings import environment
from zenml_ext.kubernetes.growth import Refusal, ResizeAnswer

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
# A request that takes longer than the step takes to use up the rest helps nobody.
_TIMEOUT_S = 5.0
# 401: the token has expired; the kubelet renews it, and each request reads it again.
_FORBIDDEN, _BUSY, _SERVER = 403, (401, 409, 429), 500


@dataclass(frozen=True, slots=True, kw_only=True)
class PodResizer:
    """Asks the API server to resize one container of one pod.

    Attributes:
        url: of the pod's resize subresource.
        container: name of the container.
        folder: where the service account's token and the cluster's certificate are; they are
            read at each request, since the kubelet renews the token.
    """

    url: str
    container: str
    folder: Path = SERVICE_ACCOUNT

    @classmethod
    def own(cls, pod: str, container: str, folder: Path = SERVICE_ACCOUNT) -> PodResizer | None:
        """The resizer of this pod; None outside a cluster or without a service account."""
        host = environment().get("KUBERNETES_SERVICE_HOST")
        port = environment().get("KUBERNETES_SERVICE_PORT", "443")
        try:
            namespace = (folder / "namespace").read_text().strip()
        except OSError:
            return None
        if not host or not pod:
            return None
        server = f"[{host}]" if ":" in host else host
        url = f"https://{server}:{port}/api/v1/namespaces/{namespace}/pods/{pod}/resize"
        return cls(url=url, container=container, folder=folder)

    def resize(self, limit: Quantity) -> ResizeAnswer:
        """Ask for a memory limit of *limit*, and a request, for the scheduler; never raises."""
        return self._patch({section: {"memory": str(limit)} for section in ("limits", "requests")})

    def look(self) -> ResizeAnswer:
        """Report what became of the last resize, without asking for another."""
        return self._patch({})

    def withdraw(self, limit: Quantity) -> ResizeAnswer:
        """Wish for no more than *limit*, or at least request no more where limits may not sink."""
        answer = self.resize(limit)
        if answer.refusal is Refusal.FOR_GOOD:  # Kubernetes 1.33 refuses a lower limit
            return self._patch({"requests": {"memory": str(limit)}})
        return answer

    def _patch(self, resources: Mapping[str, Mapping[str, str]]) -> ResizeAnswer:
        body = {"spec": {"containers": [{"name": self.container, "resources": resources}]}}
        request = urllib.request.Request(  # noqa: S310 - the scheme is https, see own()
            self.url,
            data=json.dumps(body).encode(),
            method="PATCH",
            headers={"Content-Type": "application/strategic-merge-patch+json"},
        )
        try:
            token = (self.folder / "token").read_text().strip()
            request.add_header("Authorization", f"Bearer {token}")
            context = ssl.create_default_context(cafile=str(self.folder / "ca.crt"))
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context) as answer:  # noqa: S310
                return ResizeAnswer(refusal=None, pending=_pending(json.load(answer)))
        except urllib.error.HTTPError as error:
            return _refused(error.code, error.read().decode(errors="replace"))
        except (OSError, http.client.HTTPException, ValueError) as error:
            return ResizeAnswer(refusal=Refusal.FOR_NOW, message=str(error))


def _pending(pod: Mapping[str, Any]) -> str:
    """Why the kubelet has not begun a resize of *pod*: its condition's reason, or ""."""
    for one in (pod.get("status") or {}).get("conditions") or ():
        if one["type"] == "PodResizePending" and one["status"] == "True":
            return str(one.get("reason") or "Deferred")
    return ""


def _refused(code: int, body: str) -> ResizeAnswer:
    try:
        message = str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        message = body[:200]
    if code in _BUSY or code >= _SERVER:
        refusal = Refusal.FOR_NOW
    else:  # RBAC says "cannot patch resource"; admission names what there is too little of.
        is_room = code == _FORBIDDEN and "cannot patch" not in message
        refusal = Refusal.TOO_MUCH if is_room else Refusal.FOR_GOOD
    return ResizeAnswer(refusal=refusal, message=f"{code}: {message}")
