"""The kinds of process that patch ZenML for themselves, and for no other process."""

from __future__ import annotations

import logging

from mlops_ext.errors import MlopsExtError
from mlops_ext.extensions.activation import apply

log = logging.getLogger(__name__)

ORCHESTRATOR_POD = "the pod of an orchestrator kubernetes_oom"
DYNAMIC_POD = "the pod of a dynamic pipeline under kubernetes_oom"
STEP_POD = "the pod of a step under kubernetes_oom"
LOCAL_STEP = "the process of a step under local_oom"


def patch_own_process(process: str) -> None:
    """Apply the patches for this kind of *process*.

    If they cannot be applied the process goes on as ZenML's own would, and says so.
    """
    try:
        apply("zenml", process=process)
    except MlopsExtError as error:
        log.warning("No step is retried for want of memory here: %s", error)
