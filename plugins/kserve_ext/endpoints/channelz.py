"""How many calls a gRPC server has accepted: gRPC's own count, from before Python sees a call.

grpcio counts for its package grpcio-channelz, which reads the numbers in the same way.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

from grpc._cython import cygrpc  # type: ignore[import-untyped]  # ships no types


def newest_server() -> int:
    """The number of the gRPC server that was made last in this process; 0 if there is none."""
    with contextlib.suppress(AttributeError, ValueError):
        found = json.loads(cygrpc.channelz_get_servers(0)).get("server", [])
        return max((int(server["ref"]["serverId"]) for server in found), default=0)
    return 0


def unanswered(server: int) -> int:
    """Calls that *server* has accepted and not answered; 0 if gRPC does not count them."""
    with contextlib.suppress(AttributeError, ValueError):
        data: dict[str, Any] = json.loads(cygrpc.channelz_get_server(server))["server"]["data"]
        return int(data["callsStarted"]) - int(data["callsSucceeded"]) - int(data["callsFailed"])
    return 0
