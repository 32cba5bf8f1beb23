"""Implements a hook that does not exist."""

from mlops_ext import hookimpl


@hookimpl
def mlops_ext_framework():
    """Misspelt: the hook is called mlops_ext_frameworks."""
