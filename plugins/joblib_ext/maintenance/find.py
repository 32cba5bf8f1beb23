"""Finding a store from what a user types, with the settings that the program has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from joblib_ext.settings import read_options
from joblib_ext.stores.files.store import FileStore
from joblib_ext.stores.kinds import Store, open_store
from joblib_ext.stores.layout import ROOT
from joblib_ext.stores.objects.location import is_object_location
from mlops_ext.errors import SettingsError


def store_for(location: str | Path) -> Store:
    """The store of a ``Memory`` at *location*, which may be empty."""
    text = str(location).rstrip("/")
    text = text if is_object_location(text) else os.path.abspath(text)  # noqa: PTH100  # a text
    return open_store(f"{text}/joblib", read_options({}))


def find_store(location: str | Path, given: Mapping[str, Any] | None = None) -> Store:
    """The store at *location*: what was given to ``Memory``, or the ``joblib`` below it.

    Args:
        location: a folder or a URL.
        given: options that outrank the settings.

    Raises:
        SettingsError: there is none, or an option has a value that cannot be used.
    """
    options, text = read_options(given or {}), str(location).rstrip("/")
    candidates = [f"{text}/joblib", text]
    if text.endswith(f"/{ROOT}"):
        candidates.append(text.rpartition("/")[0])
    for candidate in candidates:
        if is_object_location(text) or os.path.isdir(f"{candidate}/{ROOT}"):  # noqa: PTH112  # a text
            store = open_store(candidate, options)
            if isinstance(store, FileStore) or store.client.names(ROOT):
                return store
    wish = f"the location of a Memory (nothing named {ROOT} is here or in joblib below)"
    raise SettingsError("location", text, wish)
