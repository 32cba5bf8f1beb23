"""Fixes that teams bolt onto the MLOps frameworks they already run."""

from mlops_ext.errors import MlopsExtError

__all__ = ["MlopsExtError", "__version__"]

__version__ = "0.1.0"
