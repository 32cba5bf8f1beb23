"""The kubernetes client without a socket: its requests go straight to the double, in its own thread."""

from __future__ import annotations

import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.doubles.kubernetes.store import ApiError, clone

from kubernetes import client
from kubernetes.client.rest import ApiException, RESTClientObject

if TYPE_CHECKING:
    from tests.doubles.kubernetes.cluster import Cluster


@dataclass
class Answer:
    """As much of a response as the client looks at."""

    status: int
    data: str
    reason: str = ""

    def getheaders(self) -> dict[str, str]:
        return {}

    def getheader(self, name: str, default: str | None = None) -> str | None:
        return default


class DirectRest(RESTClientObject):
    def __init__(self, cluster: Cluster) -> None:  # the parent's would open a pool of connections
        self.cluster = cluster

    def request(
        self,
        method: str,
        url: str,
        query_params: Any = None,
        headers: Any = None,
        body: Any = None,
        post_params: Any = None,
        _preload_content: bool = True,
        _request_timeout: Any = None,
    ) -> Any:
        given = {"Authorization": "Bearer admin", **(headers or {})}
        query = {key: str(value) for key, value in query_params or ()}
        try:
            code, payload = self.cluster.answer(
                SimpleNamespace(command=method, headers=given),  # type: ignore[arg-type]
                urlsplit(url).path,
                query,
                clone(body) if body else None,
            ) or (200, {})
        except ApiError as error:
            code, payload = error.code, error.status()
        text = payload if isinstance(payload, str) else json.dumps(payload)
        answer = Answer(code, text, payload.get("reason", "") if isinstance(payload, dict) else "")
        if not 200 <= code <= 299:
            raise ApiException(http_resp=answer)
        return answer


def direct_client(cluster: Cluster) -> client.ApiClient:
    """An API client whose calls are carried out before they return."""
    api = client.ApiClient(client.Configuration(host="http://double"))
    api.rest_client = DirectRest(cluster)
    return api
