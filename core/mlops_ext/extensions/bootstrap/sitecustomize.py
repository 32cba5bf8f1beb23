"""Found first on PYTHONPATH under ``mlops-ext run``: arms the patches, then runs the user's own.

This folder holds nothing else. Every interpreter below ``run`` pays for this file, whichever Python
it is and whether or not mlops-ext is installed for it. So it imports only what each interpreter has
loaded already, and reads the environment itself: `mlops_ext.settings` costs more than all the rest.
A fault in here must not stop the interpreter: it is reported in one line on standard error.
"""

import os
import sys

TYPE_CHECKING = False  # type checkers know this name; importing typing costs milliseconds
if TYPE_CHECKING:
    from collections.abc import Callable


def _run_the_users_own() -> None:
    """Execute the ``sitecustomize`` that this one hides, if there is one.

    It is looked for behind this folder only: another installation's, which stands before or behind
    it where one ``run`` started another, goes on from its own place.
    """
    here = os.path.dirname(os.path.abspath(__file__))
    places = [os.path.abspath(entry or ".") for entry in sys.path]
    behind = sys.path[places.index(here) + 1 :] if here in places else sys.path
    import _frozen_importlib
    import _frozen_importlib_external

    others = [entry for entry in behind if os.path.abspath(entry or ".") != here]
    spec = _frozen_importlib_external.PathFinder.find_spec("sitecustomize", others)
    if spec is None or spec.loader is None:
        return
    module = _frozen_importlib.module_from_spec(spec)
    sys.modules["sitecustomize"] = module
    spec.loader.exec_module(module)


def _arm(entry: str) -> None:
    """Arm the framework of *entry*: ``name``, or ``name=module`` if another module triggers it."""
    from mlops_ext.extensions.finder import arm

    framework, _, module = entry.strip().partition("=")
    if not framework:
        return

    def apply() -> None:
        from mlops_ext.extensions import activation

        activation.apply_guarded(framework)

    def prepare() -> None:
        from mlops_ext.extensions import activation

        activation.prepare_for_import(framework)

    arm(framework, module or framework, apply, prepare)


def _start() -> "Callable[[str], None]":
    """Arm everything; return the function to call after the user's own ``sitecustomize``."""
    if sys.version_info < (3, 10):
        raise RuntimeError("mlops-ext needs Python 3.10 or later")
    from mlops_ext.processes.signals import hear_as_pid_1

    hear_as_pid_1()  # first: until then the kernel drops SIGTERM for PID 1
    from mlops_ext.extensions import handover

    for entry in os.environ.get("MLOPS_EXT_AUTOPATCH", "").split(","):
        _arm(entry)
    return handover.stay_first


_stay_first = None
try:
    _stay_first = _start()
except BaseException as error:
    try:
        sys.stderr.write("mlops-ext: no patches in %s: %s\n" % (sys.executable, error))
    except Exception:  # standard error is closed
        pass
finally:
    _run_the_users_own()
    if _stay_first is not None:
        _stay_first(os.path.dirname(os.path.abspath(__file__)))
