# ruff: noqa: SLF001  # what KServe keeps private is what differs between its releases
"""What differs between KServe's releases: where the servers are made and where they are run.

=============  =====================================================================
0.13 - 0.14.0  ``start`` runs closures that make the servers: `make_legacy` does so for us
0.14.1         ``start`` awaits ``_servers_task``; the ``workers`` argument has no effect
0.15 - 0.21    ``start`` awaits ``_serve``; REST workers are spawned processes
=============  =====================================================================
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import multiprocessing
import os
import socket
from collections.abc import Coroutine
from multiprocessing.connection import Connection
from typing import Any

from kserve_ext.endpoints import worker_process
from kserve_ext.endpoints.grpc import GrpcEndpoint
from kserve_ext.endpoints.rest import RestEndpoint
from kserve_ext.endpoints.workers import Share, WorkersEndpoint
from kserve_ext.plugin import INTERCEPTIONS
from kserve_ext.shutdown.drain import Drain
from mlops_ext.versions import installed_version

BACKLOG = 2048  # uvicorn's own default; KServe 0.13 listens with 5 for its workers

Coroutines = list[Coroutine[Any, Any, Any]]


def endpoints_of(server: Any, drain: Drain) -> Coroutines:
    """Make the endpoints of a server of 0.14.1 or later; the coroutines that serve them."""
    workers = getattr(server, "_rest_multiprocess_server", None)
    if hasattr(server, "_serve"):
        coroutines: Coroutines = list(server.servers)
    else:  # 0.14.1
        coroutines = [server._rest_server.start()]
        if server.enable_grpc:
            coroutines.append(server._grpc_server.start(server.max_threads))
    if workers is None:
        drain.endpoints.append(RestEndpoint(server._rest_server._server, drain))
    else:
        # KServe's own supervision of workers; users and engines add coroutines of theirs.
        codes = [getattr(coroutine, "cr_code", None) for coroutine in coroutines]
        index = codes.index(type(workers).start.__code__)
        coroutines[index].close()
        endpoint = _spawned_workers(workers, server.workers, drain)
        coroutines[index] = endpoint.serve()
        drain.endpoints.append(endpoint)
    if server.enable_grpc:
        drain.endpoints.append(GrpcEndpoint(drain))
    return coroutines


def _spawned_workers(upstream: Any, count: int, drain: Drain) -> WorkersEndpoint:
    """REST workers of 0.15 and later."""
    rest = upstream._rest_server
    listening = rest.config.bind_socket()
    context = multiprocessing.get_context("spawn")

    def make(share: Share, _: list[Connection]) -> Any:
        arguments = (rest, upstream.log_config_file, [listening], share, INTERCEPTIONS)
        return context.Process(target=worker_process.run_spawned, args=arguments)

    return WorkersEndpoint(make, count, drain, [listening])


def make_legacy(server: Any, drain: Drain) -> Coroutines:
    """The same for 0.13 and 0.14.0, in place of what their ``start`` is about to run."""
    upstream = importlib.import_module("kserve.model_server")
    loop = asyncio.get_running_loop()
    handler = server._custom_exception_handler or server.default_exception_handler
    loop.set_exception_handler(handler)
    has_app = "app" in inspect.signature(upstream.UvicornServer).parameters  # 0.14.0
    many = server.workers > 1 and not has_app
    if many and not hasattr(os, "fork"):
        raise RuntimeError(
            f"KServe {installed_version('kserve')} forks its workers, which this system cannot;"
            " set workers=1 or install KServe 0.15 or later"
        )
    # As KServe does: probes come from outside.
    address = ("0.0.0.0", server.http_port)  # noqa: S104
    sockets = [socket.create_server(address, backlog=BACKLOG)] if many else []
    common = {"log_config": None, "access_log_format": server.access_log_format}
    if has_app:
        rest = upstream.UvicornServer(
            upstream.app, server.http_port, server.dataplane, server.model_repository_extension,
            workers=server.workers, **common,
        )  # fmt: skip
    else:
        rest = upstream.UvicornServer(
            server.http_port, sockets, server.dataplane, server.model_repository_extension,
            server.enable_docs_url, **common,
        )  # fmt: skip
    server._rest_server = rest
    if many:
        workers = _forked_workers(rest, server, drain, sockets)
        workers.launch_all()  # before grpc has threads
        coroutines: Coroutines = [workers.serve()]
        drain.endpoints.append(workers)
    else:
        drain.endpoints.append(RestEndpoint(rest.server, drain))
        coroutines = [rest.run()]
    if server.enable_grpc:
        drain.endpoints.append(GrpcEndpoint(drain))
        coroutines.append(server._grpc_server.start(server.max_threads))
    return coroutines


def _forked_workers(
    rest: Any, server: Any, drain: Drain, sockets: list[socket.socket]
) -> WorkersEndpoint:
    """REST workers of 0.13, forked as KServe forks them: its models need not be picklable."""
    context = multiprocessing.get_context("fork")

    def make(share: Share, foreign: list[Connection]) -> Any:
        arguments = (rest, server.registered_models, sockets, share, foreign)
        return context.Process(target=worker_process.run_forked, args=arguments)

    return WorkersEndpoint(make, server.workers, drain, list(sockets))
