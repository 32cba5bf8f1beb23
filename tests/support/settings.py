"""Settings as a process finds them in a folder, with an environment of its own."""

import contextlib
import os

import pytest

from mlops_ext import settings

__all__ = ["load", "process"]


@contextlib.contextmanager
def process(directory=None, environ=()):
    """Be in *directory*, with these of our variables alone, for the time of the block."""
    with pytest.MonkeyPatch.context() as patched:
        for name in [name for name in os.environ if name.startswith("MLOPS_EXT_")]:
            patched.delenv(name)
        for name, value in dict(environ).items():
            patched.setenv(name, value)
        if directory is not None:
            patched.chdir(directory)
        yield


def load(cls, section="", *, directory=None, environ=(), arguments=None):
    """As `settings.load`, in such a process."""
    with process(directory, environ):
        return settings.load(cls, section, arguments=arguments)
