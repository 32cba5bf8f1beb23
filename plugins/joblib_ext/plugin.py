"""What mlops-ext knows of the joblib extension; joblib itself is not imported here."""

from __future__ import annotations

from collections.abc import Iterable

from joblib_ext.doctor import check_checksum
from mlops_ext.hookspecs import DoctorCheck, Framework, hookimpl
from mlops_ext.patching import Patch

_SUPPORTED = ">=1.4,<1.7"


def _patch(name: str, *, verified_by: str, **what: str) -> Patch:
    file, _, test = verified_by.partition("::")
    return Patch(
        id=f"joblib.{name}",
        framework="joblib",
        distribution="joblib",
        versions=_SUPPORTED,
        verified_by=f"tests/plugins/joblib_ext/test_{file}.py::{test}",
        **what,
    )


BACKEND = (
    _patch(
        "shared-backend",
        target="joblib.memory:_STORE_BACKENDS[shared]",
        replacement="joblib_ext.patches:backend_factory",
        expects="nothing",
        reason="a cache folder that several machines share gives wrong values and stampedes",
        upstream="https://joblib.readthedocs.io/en/stable/generated/joblib.register_store_backend.html",
        verified_by="versions::test_two_versions_of_a_function_share_a_cache",
    ),
    _patch(
        "cached-functions",
        target="joblib.memory:MemorizedFunc.__init__",
        replacement="joblib_ext.patches:adopting_init",
        reason="a store is not told which code runs, nor when a call ends and others may go on",
        verified_by="versions::test_two_versions_of_a_function_share_a_cache",
    ),
    _patch(
        "no-secrets-in-pickles",
        target="joblib.memory:Memory.__getstate__",
        replacement="joblib_ext.patches:secretless_getstate",
        reason="the options of a Memory hold keys, and it is pickled into workers and models",
        verified_by="secrets::test_no_pickle_holds_a_secret",
    ),
    _patch(
        "default-backend",
        target="joblib.memory:_store_backend_factory",
        replacement="joblib_ext.patches:default_backend",
        reason="libraries make a Memory from a path; does nothing unless joblib.backend is shared",
        verified_by="default_backend"
        "::test_a_pipeline_of_scikit_learn_gets_the_backend_of_the_settings",
    ),
)
ARGUMENTS = (
    _patch(
        "arguments",
        target="joblib.memory:MemorizedFunc._get_args_id",
        replacement="joblib_ext.patches:quick_args_id",
        reason="telling a call apart by its arguments takes most of a hit's time, in any store",
        verified_by="arguments::test_a_call_is_told_apart_without_signature_and_python_pickler",
    ),
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
    """The backend with what it needs, and the quick way to a call's digest."""
    return [*BACKEND, *ARGUMENTS]


@hookimpl
def mlops_ext_doctor_checks() -> Iterable[DoctorCheck]:
    """Whether the fast checksum is there."""
    return [DoctorCheck(name="joblib.checksum", framework="joblib", run=check_checksum)]
