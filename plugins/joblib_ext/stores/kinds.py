"""The two kinds of store, and which one a location asks for."""

from __future__ import annotations

from joblib_ext.settings import SharedOptions
from joblib_ext.stores.files.store import FileStore
from joblib_ext.stores.objects.location import is_object_location
from joblib_ext.stores.objects.store import ObjectStore

Store = FileStore | ObjectStore


def open_store(location: str, options: SharedOptions) -> Store:
    """The store at *location*, a folder or a URL."""
    return (ObjectStore if is_object_location(location) else FileStore)(location, options)
