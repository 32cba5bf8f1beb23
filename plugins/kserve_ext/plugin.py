"""What the KServe extension brings: the framework, the patches as data, a check for doctor.

KServe is not imported here.
"""

from __future__ import annotations

from collections.abc import Iterable

from mlops_ext.hookspecs import DoctorCheck, Framework, hookimpl
from mlops_ext.patching import Patch

SUPPORTED = ">=0.13,<0.22"
"""Releases of KServe that the tests run on."""
CLASS = "kserve.model_server:ModelServer"


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
    """The patches, one place of KServe each; `GracefulModelServer` needs none of them."""
    yield _patch(
        "start",
        target=f"{CLASS}.start",
        reason="readiness stays true after SIGTERM, and requests are refused, cut off or answered"
        " by models that have stopped",
        verified_by="test_server.py::test_nothing_is_lost",
    )
    yield _patch(
        "stop",
        target=f"{CLASS}.stop",
        reason="stop() unloads the models while requests are in flight, and crashes the"
        " interpreter while gRPC starts",
        verified_by="shutdown/test_signals.py::test_bare_server_crashes_on_a_signal_while_it_starts",
    )
    yield _patch(
        "shutdown",
        target=f"{CLASS}.shutdown",
        expects="nothing",
        reason="a server in a thread or a notebook cannot be ended",
        verified_by="test_threads.py::test_a_server_in_a_thread_drains_on_shutdown",
    )
    yield _patch(
        "parser",
        target="kserve.model_server:parser",
        expects="argparse",
        reason="the parser of a model server refuses --lame_duck_s and --drain_s",
        verified_by="test_settings.py::test_argument_then_flag_then_environment_then_file",
    )


def _patch(name: str, *, target: str, reason: str, verified_by: str, expects: str = "") -> Patch:
    return Patch(
        id=f"kserve.{name}",
        framework="kserve",
        distribution="kserve",
        versions=SUPPORTED,
        target=target,
        replacement=f"kserve_ext.patches:{name}",
        expects=expects,
        reason=reason,
        verified_by=f"tests/plugins/kserve_ext/{verified_by}",
    )


@hookimpl
def mlops_ext_doctor_checks() -> Iterable[DoctorCheck]:
    """The checks of `kserve_ext.doctor`."""
    from kserve_ext.doctor import check_settings

    return [DoctorCheck(name="kserve.settings", framework="kserve", run=check_settings)]
