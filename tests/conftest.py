"""Fixtures that several test folders share."""

from tests.windows import wine_python

__all__ = ["wine_python"]
