"""Clearing by one rename; the files behind it go in the background."""

from __future__ import annotations

import os
import threading

from joblib_ext.stores.files.entry_files import EntryFiles
from joblib_ext.stores.files.folders import make_own_folder
from joblib_ext.stores.files.moving import set_aside
from mlops_ext import files
from mlops_ext.files import remove, temp_name


def clear(store: EntryFiles, folder: str) -> None:
    """Make *folder* disappear at once for every process, and remove its files later.

    Leans on: an atomic rename of a directory. Writers that meet the gap make the folder anew.
    Where a rename is not possible, on a full disk or on layers of an image, the files are removed
    one by one.

    Raises:
        OSError: some are still there.
    """
    target = f"{store.layout.trash}/{temp_name('cleared')}"
    above, _, name = folder.rpartition("/")
    trouble: OSError | bool
    try:
        with files.folder_below(store.layout.location, above) as parent:
            try:
                make_own_folder(store.layout.trash)
                place = folder if parent is None else name
                trouble = set_aside(place, target, lambda _: True, parent)
            except OSError as error:
                trouble = error
            if trouble is True:
                empty_later(store)
            elif left := remove(folder, parent=parent).left:
                raise left[0].error from left[0]
    except FileNotFoundError:  # nothing was stored yet
        return


def empty_later(store: EntryFiles) -> None:
    """Empty the trash in a thread that does not keep the process alive.

    What a process leaves behind when it ends, the next clearing or ``gc`` removes.
    """
    threading.Thread(
        target=empty, args=(store.layout.trash,), name="mlops-ext-trash", daemon=True
    ).start()


def empty(trash: str) -> int:
    """Remove everything in *trash*; the number of files and folders removed."""
    if os.path.islink(trash):  # noqa: PTH114  # a text
        return remove(trash).removed  # the link; what it points to is not this store's
    return files.empty(trash, patience_s=0).removed  # which follows no link put there meanwhile
