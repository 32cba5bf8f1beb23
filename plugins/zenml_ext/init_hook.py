"""ZenML's ``zenml.init_hooks`` entry point: it runs first in every ``import zenml``.

Nothing of ZenML can be imported here, and whatever is raised here breaks that import for
everybody, so nothing is.
"""

from __future__ import annotations

import logging

TRIGGER = "zenml.materializers.base_materializer"
"""Importing it means that the targets of the patches exist; ``zenml`` itself is half imported."""


def arm() -> None:
    """Arm the patches that ``MLOPS_EXT_AUTOPATCH`` lists, and the temporary directory's.

    A configured temporary directory is reason enough: who names one wants it used. It is made
    now, before anything asks `tempfile`, which would pass over a missing one without a word.
    """
    try:
        _arm()
    except Exception as error:
        is_known = type(error).__module__ == "mlops_ext.errors"  # the import itself may have failed
        logging.getLogger(__name__).warning(
            "mlops-ext changed nothing in ZenML: %s", error, exc_info=not is_known
        )


def _arm() -> None:
    from mlops_ext import settings
    from mlops_ext.extensions import activation

    core = settings.load(settings.CoreSettings)
    if "zenml" in core.disable:
        return
    others = [name for name in core.autopatch if name.partition("=")[0] != "zenml"]
    if core.temp_dir is not None:
        from mlops_ext import tempdirs

        tempdirs.root()
    if core.temp_dir is not None or len(others) < len(core.autopatch):
        activation.apply_on_import("zenml", TRIGGER)
    activation.autopatch(others)
