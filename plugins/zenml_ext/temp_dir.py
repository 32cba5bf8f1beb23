"""Choose the temporary root of a process in code, as `MLOPS_EXT_TEMP_DIR` does from outside."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from mlops_ext import tempdirs
from mlops_ext.extensions.activation import apply_on_import
from mlops_ext.settings import environment
from zenml_ext.init_hook import TRIGGER

_VARIABLES = ("MLOPS_EXT_TEMP_DIR", "TMPDIR", *(("TEMP", "TMP") if os.name == "nt" else ()))

# The variables as they were before the first call; None if nothing is set.
_before: dict[str, str | None] | None = None


def set_temp_dir(path: str | Path | None) -> Path | None:
    """Keep temporary files below *path* in this process and those it starts; None undoes that.

    That concerns ZenML's materializers and everything that uses `tempfile`. What stands in the
    former place already stays there.

    Args:
        path: the directory; made if it is missing, and written to once.

    Returns:
        The directory as an absolute path; None if the former place is back.

    Raises:
        TempDirError: it cannot be made or written to; nothing has changed.
    """
    global _before
    if path is None:
        for name, value in (_before or {}).items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        _before, tempfile.tempdir = None, None
        return None
    place = tempdirs.check_root(path)
    if _before is None:
        known = environment()
        _before = {name: known.get(name) for name in _VARIABLES}
    os.environ.update(dict.fromkeys(_VARIABLES, str(place)))
    tempfile.tempdir = None  # asked again, it finds TMPDIR
    apply_on_import("zenml", TRIGGER)
    return place
