"""Moving what stands at a path away, where a reply can be lost and another may have been faster.

The one place that judges such a move: after an ambiguous error the place it was moved to decides,
and what was moved is looked at, since it may be another file than the one that was meant.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable

from joblib_ext.stores.events import Events

# After these the destination decides: the reply can be lost though the operation took place.
AMBIGUOUS = frozenset({errno.EEXIST, errno.ENOENT, errno.ESTALE, errno.EIO, errno.ENOTDIR})


def set_aside(
    path: str, aside: str, is_meant: Callable[[str], bool], parent: int | None = None
) -> OSError | bool:
    """Move *path* to *aside*; what is not meant is put back.

    Leans on: an atomic rename, a link that fails if the name is taken.

    Args:
        path: what is moved; relative to the open directory *parent* if one is given.
        aside: the place that it is moved to.
        is_meant: whether what now stands aside is what was to be moved.
        parent: a descriptor, or None.

    Returns:
        True if it stands aside, False if something else stood there or nothing, and the error if
        it could not be moved.
    """
    refused: OSError | None = None
    try:
        os.rename(path, aside, src_dir_fd=parent)
    except OSError as error:
        if error.errno not in AMBIGUOUS or error.errno == errno.EIO:
            refused = error
    if not os.path.lexists(aside):
        return refused or False
    if is_meant(aside):
        return True
    with contextlib.suppress(OSError):
        os.link(aside, path, dst_dir_fd=parent)
    discard(aside)
    return False


def link(origin: str, place: str, is_own: Callable[[str], bool], events: Events) -> OSError | None:
    """Link *origin* to *place*: None if it stands there, also where the reply was lost.

    Leans on: a link that fails if the name is taken.
    """
    try:
        os.link(origin, place)
    except OSError as error:
        if error.errno not in AMBIGUOUS or not is_own(place):
            return error
        events.note("lost-reply", place)
    return None


def discard(path: str, parent: int | None = None) -> None:
    """Remove a file, if it is there and can be removed; relative to *parent* if one is given."""
    with contextlib.suppress(OSError):
        os.unlink(path, dir_fd=parent)
