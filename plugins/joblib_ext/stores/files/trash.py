"""Clearing by one rename; the files behind it go in the background."""

from __future__ import annotations

import os
import threading

from joblib_ext.stores.files.entry_files import AMBIGUOUS, EntryFiles
from joblib_ext.stores.files.layout import make_own_folder
from mlops_ext import files
from mlops_ext.files import remove, temp_name


def move_to_trash(store: EntryFiles, folder: str, *, background: bool = True) -> None:
    """Make *folder* disappear at once for every process, and remove its files later.

    Leans on: an atomic rename of a directory. Writers that meet the gap make the folder anew.
    Where even the rename is refused, a warning says so once.
    """
    target = f"{store.layout.trash}/{temp_name('cleared')}"
    try:
        make_own_folder(store.layout.trash)
        os.rename(folder, target)  # noqa: PTH104  # texts throughout
    except FileNotFoundError:
        if not os.path.lexists(target):
            return
        store.events.note("lost-reply", folder)
    except OSError as error:
        if error.errno not in AMBIGUOUS or not os.path.lexists(target):
            store.events.warn_once("clear", f"the cache could not be cleared: {error}", error)
            return
        store.events.note("lost-reply", folder)
    if background:
        empty_later(store)


def clear_now(store: EntryFiles) -> int:
    """Clear the store and wait until its files are gone; the number of files and folders."""
    move_to_trash(store, store.layout.items, background=False)
    return empty(store.layout.trash)


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
