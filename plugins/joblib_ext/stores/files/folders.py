"""The folders of a store: who can write them, and that none is a link."""

from __future__ import annotations

import contextlib
import os
import stat

from joblib_ext.settings import SharedOptions
from joblib_ext.stores.events import Events
from joblib_ext.stores.layout import Layout
from mlops_ext.errors import SettingsError

_GROUP_FOLDER, _GROUP_FILE = 0o2770, 0o660


def make_own_folder(folder: str, group: int | None = None) -> None:
    """Make one of a store's own folders; a link in its place is taken away, never followed.

    Args:
        folder: the folder.
        group: whose members may store and clear there, whatever the umask says; None: the umask
            decides.

    Raises:
        OSError: the folder could not be made.
    """
    missing = [folder]
    try:
        os.mkdir(folder)  # noqa: PTH102  # texts throughout
    except OSError:  # it is there, or the folder above it is not
        if os.path.islink(folder):  # noqa: PTH114  # as above
            os.unlink(folder)  # noqa: PTH108  # as above
        while group is not None and not os.path.isdir(missing[-1]):  # noqa: PTH112  # as above
            missing.append(os.path.dirname(missing[-1]))  # noqa: PTH120  # as above
        os.makedirs(folder, exist_ok=True)  # noqa: PTH103  # as above
        missing.pop()
    for made in missing:
        share(made, group, _GROUP_FOLDER)


def share(path: str, group: int | None, mode: int = _GROUP_FILE) -> None:
    """Let the members of *group* use what this process made."""
    if group is not None:
        with contextlib.suppress(OSError):
            os.chown(path, -1, group)
            os.chmod(path, mode)  # noqa: PTH101  # as above


def group_of(name: str | None) -> int | None:
    """The number of a group.

    Raises:
        SettingsError: there is no such group.
    """
    if name is None:
        return None
    try:
        import grp

        return grp.getgrnam(name).gr_gid
    except (ImportError, KeyError) as error:
        raise SettingsError("group", name, "the name of a group of this machine") from error


def warn_of_writers(layout: Layout, options: SharedOptions, events: Events) -> None:
    """Warn, once a process, where everybody on the machine can write into an unsigned store.

    A folder that its group can write is left alone: that is how a team shares one.
    """
    if options.sign_key is not None or options.trust_folder or os.name != "posix":
        return
    for folder in (layout.location, layout.root, layout.items):
        with contextlib.suppress(OSError):
            if os.stat(folder).st_mode & stat.S_IWOTH:  # noqa: PTH116  # a text
                events.warn_once(
                    "writers",
                    f"{folder} can be written by everybody, and reading a cached result runs what"
                    " stands there: take the right away (chmod o-w), set the backend option"
                    " sign_key to a secret of those who share it, or set trust_folder=True",
                )
