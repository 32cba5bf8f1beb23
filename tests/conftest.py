"""Fixtures and settings that several test folders share."""

import os
import signal

from hypothesis import settings
from tests.windows import wine_python
from tests.zenml_project import zenml_home

__all__ = ["wine_python", "zenml_home"]

# In CI the same examples each time: a change is judged, not the luck of the draw. At a desk, and
# in the long runs, new ones.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("desk", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

# What runs in the background of a shell is started with SIGINT ignored, which children inherit:
# no test of Ctrl-C could pass.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
