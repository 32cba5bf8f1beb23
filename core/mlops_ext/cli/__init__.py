"""The command line: ``mlops-ext``."""

from mlops_ext.cli._root import main

__all__ = ["main"]
