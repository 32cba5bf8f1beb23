"""Fixtures and settings that several test folders share."""

import os

from hypothesis import settings
from tests.windows import wine_python
from tests.zenml_project import zenml_home

__all__ = ["wine_python", "zenml_home"]

# In CI the same examples each time: a change is judged, not the luck of the draw. At a desk, and
# in the long runs, new ones.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("desk", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "desk")
