"""Who can write a store: whoever can, runs code in everybody who reads an unsigned one."""

from __future__ import annotations

import os
import stat

from joblib_ext.settings import SharedOptions
from joblib_ext.stores.events import Events
from joblib_ext.stores.files.layout import Layout

__all__ = ["warn_of_writers"]


def warn_of_writers(layout: Layout, options: SharedOptions, events: Events) -> None:
    """Warn, once a process, where everybody on the machine can write into an unsigned store.

    A folder that its group can write is left alone: that is how a team shares one.
    """
    if options.sign_key is not None or options.trust_folder or os.name != "posix":
        return
    for folder in (layout.location, layout.root, layout.items):
        try:
            mode = os.stat(folder).st_mode  # noqa: PTH116  # a text
        except OSError:
            continue
        if mode & stat.S_IWOTH:
            events.warn_once(
                "writers",
                f"{folder} can be written by everybody, and reading a cached result runs what"
                " stands there: take the right away (chmod o-w), set the backend option sign_key"
                " to a secret of those who share it, or set trust_folder=True",
            )
            return
