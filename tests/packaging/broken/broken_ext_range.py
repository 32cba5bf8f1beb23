"""Names a version range that cannot be read."""

from mlops_ext import hookimpl
from mlops_ext.hookspecs import Framework


@hookimpl
def mlops_ext_frameworks():
    """Give a framework with a bad range."""
    return [
        Framework(
            name="odd", distribution="odd", supported="newest", extension="odd", summary="odd"
        )
    ]
