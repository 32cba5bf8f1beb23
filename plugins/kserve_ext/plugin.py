"""What the KServe extension brings: the framework, the patches as data, a check for doctor.

KServe is not imported here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from mlops_ext.hookspecs import DoctorCheck, Framework, hookimpl
from mlops_ext.patching import Patch

SUPPORTED = ">=0.13,<0.22"  # releases of KServe that the tests run on


@hookimpl
def mlops_ext_frameworks() -> Iterable[Framework]:
    """KServe's model server."""
    return [
        Framework(
            name="kserve",
            distribution="kserve",
            supported=SUPPORTED,
            extension="kserve_ext",
            summary="model servers that start and stop without losing a request",
            before_import="kserve_ext.shutdown.signals:install_early_handlers",
        )
    ]


@hookimpl
def mlops_ext_patches() -> Iterable[Patch]:
    """The patches, one place each; `GracefulModelServer` applies the interceptions alone."""
    return (*PATCHES, *INTERCEPTIONS)


@hookimpl
def mlops_ext_doctor_checks() -> Iterable[DoctorCheck]:
    """The checks of `kserve_ext.doctor`."""
    from kserve_ext.doctor import check_settings

    return [DoctorCheck(name="kserve.settings", framework="kserve", run=check_settings)]


def _patch(target: str, replacement: str, reason: str, verified_by: str, **more: str) -> Patch:
    name = re.sub(r"_|(?<=[a-z])(?=[A-Z])", "-", replacement).lower()
    patch = {"id": f"kserve.{name}", "distribution": "kserve", "versions": SUPPORTED, **more}
    return Patch(
        framework="kserve",
        target=target,
        replacement=f"kserve_ext.patches:{replacement}",
        reason=reason,
        verified_by=f"tests/plugins/kserve_ext/{verified_by}",
        **patch,
    )


_CLASS = "kserve.model_server:ModelServer"

PATCHES = (
    _patch(
        f"{_CLASS}.start", "start",
        "after SIGTERM requests are refused, cut off, or answered by models that have stopped",
        "test_server.py::test_nothing_is_lost"),
    _patch(
        f"{_CLASS}.stop", "stop",
        "stop() stops models under their requests, and crashes Python while gRPC starts",
        "shutdown/test_signals.py::test_bare_server_crashes_on_a_signal_while_it_starts"),
    _patch(
        f"{_CLASS}.shutdown", "shutdown",
        "a server in a thread or a notebook cannot be ended",
        "test_threads.py::test_a_server_in_a_thread_drains_on_shutdown",
        expects="nothing"),
    _patch(
        "kserve.model_server:parser", "parser",
        "the parser of a model server refuses --lame_duck_s and --drain_s",
        "test_settings.py::test_argument_then_flag_then_environment_then_file",
        expects="argparse"),
)  # fmt: skip
"""What ``mlops_ext.apply`` and ``mlops-ext run`` change for servers of KServe's own class."""

INTERCEPTIONS = (
    _patch(
        f"{_CLASS}.register_signal_handler", "register_signal_handler",
        "KServe's handlers unload models at once, and cannot be set off the main thread",
        "test_threads.py::test_a_server_in_a_thread_drains_on_shutdown",
        versions=">=0.14.1,<0.22"),
    *(
        _patch(
            f"kserve.model_server:{name}", replacement,
            "KServe waits for its servers, and knows no drain",
            "test_server.py::test_nothing_is_lost",
            versions=versions, **more)
        for name, replacement, versions, more in (
            ("ModelServer._serve", "serve", ">=0.15,<0.22", {}),
            ("ModelServer._servers_task", "serve", "==0.14.1", {"id": "kserve.servers-task"}),
            ("asyncio", "LegacyAsyncio", ">=0.13,<0.14.1", {"expects": "builtins"}),
        )
    ),
    _patch(
        "uvicorn.server:Server.serve", "uvicorn_serve",
        "uvicorn takes the signals, refuses connections at once and cancels by its own clock",
        "test_server.py::test_nothing_is_lost",
        distribution="uvicorn", versions=">=0.16"),
    _patch(
        "kserve.protocol.grpc.server:aio", "GrpcAio",
        "gRPC calls are not counted, and readiness stays true",
        "shutdown/test_signals.py::test_readiness_says_no_at_once_and_liveness_yes",
        expects="builtins"),
    _patch(
        "kserve.protocol.model_repository_extension:ModelRepositoryExtension.unload", "unload",
        "a model that is unloaded is stopped while it answers requests",
        "test_unload.py::test_requests_in_flight_are_answered_before_a_model_is_unloaded"),
    _patch(
        "kserve.protocol.model_repository_extension:ModelRepositoryExtension.load", "load_anew",
        "a model that is loaded anew loses its parts while it answers requests",
        "test_unload.py::test_a_model_that_is_loaded_anew_answers_first"),
    *(
        [_patch(
            "multiprocessing.popen_spawn_win32:_winapi", "CreateProcess",
            "a console's events reach the workers, which their parent is to end",
            "shutdown/test_console.py::TestUnderWine::test_workers_start_in_a_group_of_their_own",
            expects="builtins")]
        if sys.platform == "win32"
        else []
    ),
)  # fmt: skip
"""What is changed while a server is in our care, also one of `GracefulModelServer`."""
