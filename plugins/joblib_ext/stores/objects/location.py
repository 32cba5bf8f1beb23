"""Which locations are object stores, and what must be right about them before the first call."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from joblib_ext.settings import SharedOptions
from mlops_ext.errors import MissingExtraError, SettingsError
from mlops_ext.redaction import redacted
from mlops_ext.settings import environment

# Those that obstore's `from_url` takes for stores that can refuse a write on a condition.
SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl")
# A scheme has two letters at least: ``C:/`` is a drive.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")


def is_object_location(location: str) -> bool:
    """True if *location* names an object store.

    Raises:
        SettingsError: it has a scheme that nothing here understands.
    """
    found = _URL.match(location)
    if found is None:
        return False
    if found[1].lower() not in SCHEMES:
        wish = f"a folder, or a URL that begins with {', '.join(SCHEMES[:-1])} or {SCHEMES[-1]}"
        raise SettingsError("location", location, wish)
    if not location[found.end(1) :].startswith("://"):
        raise SettingsError("location", location, "a text with ://, which pathlib.Path drops")
    return True


def check_location(location: str, options: SharedOptions) -> None:
    """Refuse now what could only fail later, in the middle of a program.

    Raises:
        MissingExtraError: obstore is not installed.
        SettingsError: a value that obstore refuses, or maps of arrays without files to map.
    """
    if options.mmap_mode is not None and options.local_tier is None:
        wish = "None, or a local_tier beside it: what is mapped is a file of this machine"
        raise SettingsError("mmap_mode", options.mmap_mode, wish)
    open_obstore(clean(location), options.storage_options or {})


def clean(location: str) -> str:
    """*location* with slashes: ``os.path.join`` puts the system's separator before ``joblib``."""
    return location.replace("\\", "/").rstrip("/")


def open_obstore(location: str, options: Mapping[str, Any], **timing: Any) -> Any:
    """An obstore store at *location*; nothing is asked of the server yet.

    Args:
        location: a URL; what follows the bucket is put before each key.
        options: arguments of obstore's `from_url`.
        timing: ``client_options`` and ``retry_config``, which *options* outrank key by key.

    Raises:
        MissingExtraError: obstore is not installed.
        SettingsError: obstore refuses the location or an option.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise MissingExtraError("obstore", "joblib-objects") from error
    merged = {**options}
    environ = environment()
    endpoint = options.get("endpoint") or environ.get(
        "AWS_ENDPOINT_URL", environ.get("AWS_ENDPOINT")
    )
    if timing and str(endpoint).startswith("http://"):  # whoever names one wants it
        timing["client_options"] = {**timing["client_options"], "allow_http": True}
    for name, value in timing.items():
        merged[name] = {**value, **merged.get(name, {})}
    try:
        return from_url(location, **merged)
    except (BaseError, TypeError, ValueError) as error:
        told = hide(redacted(error), options).partition(" Debug source")[0]
        raise SettingsError(
            "storage_options", sorted(options), f"what obstore takes ({told})"
        ) from None


def hide(text: str, options: Mapping[str, Any]) -> str:
    """*text* without the values of *options*: keys and tokens are among them."""
    for value in options.values():
        if isinstance(value, Mapping):
            text = hide(text, value)
        elif isinstance(value, str) and len(value) >= 2:  # noqa: PLR2004  # one letter is no secret
            text = text.replace(value, "***")
    return text
