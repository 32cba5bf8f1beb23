"""Answers a hook with the wrong type."""

from mlops_ext import hookimpl


@hookimpl
def mlops_ext_patches():
    """Give texts where patches are wanted."""
    return ["a patch", "another"]


@hookimpl
def mlops_ext_memory_policies():
    """Give a list where a mapping is wanted."""
    return ["policy"]
