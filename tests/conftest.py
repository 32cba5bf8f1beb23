"""Fixtures that several test folders share."""

from tests.windows import wine_python
from tests.zenml_project import zenml_home

__all__ = ["wine_python", "zenml_home"]
