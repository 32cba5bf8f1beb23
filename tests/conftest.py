"""Fixtures and settings that several test folders share."""

import os
import signal

import pytest
from hypothesis import settings
from tests.support.windows import wine_python
from tests.support.zenml_project import zenml_home

__all__ = ["wine_python", "zenml_home"]

# In CI the same examples each time: a change is judged, not the luck of the draw. At a desk, and
# in the long runs, new ones.
settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("desk", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "desk")

# What runs in the background of a shell, or below nohup, is started with these ignored, which children
# inherit: no test of Ctrl-C, or of a terminal that is closed, could pass.
for _name, _handler in {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}.items():
    _number = getattr(signal, _name, None)
    if _number and signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)


TOGETHER = {
    "tests/plugins/zenml_ext/local/test_endings": "zenml_home",
    "tests/plugins/zenml_ext/local/test_orchestrator": "zenml_home",
    "tests/plugins/zenml_ext/test_temp_dir": "zenml_home",
    "tests/plugins/zenml_ext/kubernetes/test_pipelines": "project",
    "tests/packaging/": "make_environment",
}
"""Where several processes run tests, one gets all that share a fixture which takes long to make."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """The groups above first, the largest of them at once; then test by test."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return next((TOGETHER[start] for start in TOGETHER if nodeid.startswith(start)), nodeid)

    return Scheduling(config, log)
