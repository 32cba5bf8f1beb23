"""Found first on PYTHONPATH under ``mlops-ext run``: arms the patches, then runs the user's own.

This folder holds nothing else. A fault in here must not stop somebody's interpreter: it is
reported in one line on standard error.
"""

import importlib.machinery
import importlib.util
import os
import sys


def _run_the_users_own() -> None:
    """Execute the ``sitecustomize`` that this one hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    others = [entry for entry in sys.path if os.path.abspath(entry or ".") != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _arm() -> None:
    """Arm the frameworks of ``MLOPS_EXT_AUTOPATCH``."""
    try:
        from mlops_ext.processes.signals import hear_as_pid_1

        hear_as_pid_1()  # first: until then the kernel drops SIGTERM for PID 1
        from mlops_ext.extensions.activation import autopatch
    except ImportError as error:
        sys.stderr.write(f"mlops-ext: no patches in {sys.executable}: {error}\n")
        return
    autopatch()


try:
    _arm()
finally:
    _run_the_users_own()
