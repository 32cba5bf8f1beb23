"""Raises in every hook."""

from mlops_ext import hookimpl


@hookimpl
def mlops_ext_frameworks():
    """Raise."""
    raise RuntimeError("the hook failed")


@hookimpl
def mlops_ext_patch_applied(report):
    """Raise."""
    raise RuntimeError("the listener failed on " + report.patch.id)
