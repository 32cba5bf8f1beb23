"""What mlops-ext knows of the joblib extension; joblib itself is not imported here."""

from __future__ import annotations

from collections.abc import Iterable

from joblib_ext.doctor import check_checksum
from mlops_ext.hookspecs import DoctorCheck, Framework, hookimpl
from mlops_ext.patching import Patch

_SUPPORTED = ">=1.4,<1.7"


def _patch(name: str, **what: str) -> Patch:
    return Patch(
        id=f"joblib.{name}",
        framework="joblib",
        distribution="joblib",
        versions=_SUPPORTED,
        **what,
    )


SHARED_BACKEND = _patch(
    "shared-backend",
    target="joblib.memory:_STORE_BACKENDS[shared]",
    replacement="joblib_ext.patches:backend_factory",
    expects="nothing",
    reason="a cache folder that several machines share gives wrong values and stampedes",
    upstream="https://joblib.readthedocs.io/en/stable/generated/joblib.register_store_backend.html",
    verified_by="tests/plugins/joblib_ext/test_functions.py"
    "::test_two_versions_of_a_function_share_a_cache",
)
_QUICK_TEST = "tests/plugins/joblib_ext/test_arguments.py"
QUICK_ARGUMENTS = (
    _patch(
        "quick-hashing",
        target="joblib.memory:MemorizedFunc._get_args_id",
        replacement="joblib_ext.patches:quick_args_id",
        reason="telling a call apart by its arguments takes most of a hit's time, in any store",
        verified_by=f"{_QUICK_TEST}::test_a_call_is_told_apart_without_signature_and_python_pickler",
    ),
    _patch(
        "quick-binding",
        target="joblib.memory:filter_args",
        replacement="joblib_ext.patches:quick_filter_args",
        reason="binding the arguments of a call takes a good part of a miss's time, in any store",
        verified_by=f"{_QUICK_TEST}::test_a_miss_binds_without_signature",
    ),
)

UNTIMED_PUBLISHING = _patch(
    "untimed-publishing",
    target="joblib.memory:MemorizedFunc._persist_input",
    replacement="joblib_ext.patches:untimed_persist_input",
    reason="the shared backend publishes a result there, and joblib blames the arguments when that"
    " takes half a second",
    verified_by="tests/plugins/joblib_ext/test_backend.py"
    "::test_a_slow_publish_is_not_blamed_on_the_arguments",
)


@hookimpl
def mlops_ext_frameworks() -> Iterable[Framework]:
    """Joblib."""
    return [
        Framework(
            name="joblib",
            distribution="joblib",
            supported=_SUPPORTED,
            extension="joblib_ext",
            summary='Memory(..., backend="shared"): a cache that many machines can share',
        )
    ]


@hookimpl
def mlops_ext_patches() -> Iterable[Patch]:
    """The registration of the backend, the quick way to a call's digest, and one warning less."""
    return [SHARED_BACKEND, *QUICK_ARGUMENTS, UNTIMED_PUBLISHING]


@hookimpl
def mlops_ext_doctor_checks() -> Iterable[DoctorCheck]:
    """Whether the fast checksum is there."""
    return [DoctorCheck(name="joblib.checksum", framework="joblib", run=check_checksum)]
