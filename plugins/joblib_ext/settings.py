"""The options of the shared backend, checked, each with the reason for its default."""

from __future__ import annotations

import datetime as dt
import hashlib
import importlib.util
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from typing_extensions import Self

from mlops_ext import settings
from mlops_ext.errors import InvalidSettingsError, SettingsError, UnknownSettingError

__all__ = ["CODECS", "SharedOptions", "read_options"]

CODECS = ("", "zlib", "gzip", "bz2", "lzma", "xz", "lz4")
"""Compressors by the number that stands in an entry; 0 is none."""
_DEFAULT_LEVEL = 3
"""What joblib takes for ``compress=True``: most of the gain at a fraction of the time."""
_MAX_LEVEL = 9
_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}
_SPANS_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_AMOUNT = re.compile(r"(\d+(?:\.\d*)?)\s*([A-Za-z]?)")
_SECRET = re.compile("key|secret|token|password|credential|sas|signature|auth", re.IGNORECASE)
_PREFIX = "MLOPS_EXT_JOBLIB_"
_SIGNED = "signed"
# Fields that are no option of a store.
_INTERNAL = ("backend", "secrets_id")


@dataclass(frozen=True, slots=True)
class Compression:
    """How entries are compressed: one of `CODECS`, and a level from 0 to 9."""

    codec: str = ""
    level: int = _DEFAULT_LEVEL

    @classmethod
    def parse(cls, value: object) -> Self:
        """Joblib's ``compress``: bool, level, name, or (name, level)."""
        if value in (None, False, 0, ""):
            return cls()
        given: tuple[Any, ...] = ("zlib", _DEFAULT_LEVEL if value is True else value)
        if isinstance(value, str):
            given = value, _DEFAULT_LEVEL
        elif isinstance(value, (tuple, list)):
            given = tuple(value)
        if len(given) != 2:  # noqa: PLR2004  # a pair
            raise ValueError(f"{value!r} is not a pair of name and level")
        name, level = given
        if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= _MAX_LEVEL:
            raise ValueError(f"{value!r} has no level from 0 to {_MAX_LEVEL}")
        if not isinstance(name, str) or name not in CODECS[1:]:
            raise ValueError(f"{value!r} is not one of {', '.join(CODECS[1:])}")
        if name == "lz4" and importlib.util.find_spec("lz4") is None:
            raise ValueError("lz4 is not installed (pip install lz4)")
        return cls(name, level)


class Secret(bytes):
    """A key: a text or bytes."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """The key that *value* is."""
        if isinstance(value, str):
            value = value.encode()
        if not isinstance(value, bytes) or not value:
            raise ValueError("expected a text or bytes, not empty")
        return cls(value)


class StorageOptions(dict[str, Any]):
    """Arguments of obstore's ``from_url``; in code only."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """The arguments that *value* is; they are shown in no error: there are keys in it."""
        if not isinstance(value, Mapping):
            raise ValueError("expected a dictionary")  # noqa: TRY004  # the settings' own error
        return cls(value)


class Bytes(int):
    """A number of bytes."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """A number, or a text such as 500M."""
        return cls(_amount(value, _UNITS, str.upper))


class Seconds(float):
    """A span of time."""

    @classmethod
    def parse(cls, value: object) -> Self:
        """A timedelta, a number of seconds, or a text such as 12h or 30d."""
        if isinstance(value, dt.timedelta):
            value = value.total_seconds()
        return cls(_amount(value, _SPANS_S, str.lower))


def _amount(value: object, units: Mapping[str, int], fold: Any) -> float:
    found = _AMOUNT.fullmatch(str(value).strip())
    if found is None or isinstance(value, bool) or fold(found[2]) not in units:
        raise ValueError(f"{value!r} is not a number with one of {', '.join(filter(None, units))}")
    return float(found[1]) * units[fold(found[2])]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedOptions:
    """What ``Memory(..., backend="shared", backend_options={...})`` understands.

    `compress` and `mmap_mode` are arguments of ``Memory`` itself.

    Attributes:
        compress: As joblib's. None: most results are small or numbers, which compress badly.
        mmap_mode: "r" or "c" to map arrays; "r+" and "w+" become "c": an entry is immutable, so
            that writing to a result must not change what others read. None: load into memory, as
            joblib does.
        durability: A cache can be computed again; "fsync" costs milliseconds an entry.
        verify: When a memory-mapped entry is checked. Always: a wrong value costs more than a
            reading. With `sign_key` it is always checked: what is not signed is never unpickled.
        single_flight: One process computes a key, the others wait: a stampede is the costlier
            default.
        lease_s: A lease without a heartbeat for so long is dead. Long enough for a starved
            heartbeat thread on a loaded machine, short enough to wait for after a crash.
        wait_s: Longest wait for a living owner; then one of those who wait computes too. 0: nobody
            waits. None: as long as it lives, or the longest work would be done more than once.
        sign_key: Secret shared by all who use the cache. None: everybody who can write the store is
            trusted with running code in those who read it, as with joblib's own backend. It is in
            no pickle: give it by the environment or `sign_key_file` where worker processes need it.
        sign_key_file: A file that holds the secret. None: it comes from `sign_key`, if there is
            one.
        trust_folder: Do not warn where everybody can write an unsigned store. False: few mean it to
            be so.
        group: Name of the group whose members share the folder: they can store and clear whatever
            the umask says. None: the umask decides.
        local_tier: Folder on the node's own disk for verified copies. None: most shared caches do
            without.
        local_tier_bytes: Limit of the local tier: 10 GiB fit the scratch disk of most nodes.
        revalidate_s: How long a local copy may be used unasked. 0: what another machine cleared is
            never served; each hit then asks whether the entry has changed.
        retry_s: Object stores: how long a failed request is tried again before the call computes.
            Servers recover from a moment's overload in seconds; a longer outage must not stop
            everybody.
        max_bytes: Largest size of the store, kept in the background about once an hour. None: it
            grows.
        max_age: Entries that were not used for longer are removed, as above. None: they stay.
        keep_versions: Of each function, only so many versions stay, as above. None: all.
        storage_options: Object stores: arguments of obstore's `from_url`, such as endpoint, region
            and keys. None: they are found in the environment, as the cloud's own tools do. Keys are
            in no pickle.
        backend: Not an option of a store: "shared" in the settings gives this backend to programs
            that name none. Local: nobody's cache is to move without being asked.
        secrets_id: Says which secrets belong to options that were pickled without them.
    """

    compress: Compression = Compression()
    mmap_mode: Literal["r", "c", "r+", "w+"] | None = None
    durability: Literal["none", "fsync"] = "none"
    verify: Literal["always", "first", "never"] = "always"
    single_flight: bool = True
    lease_s: float = 5.0
    wait_s: float | None = None
    sign_key: Secret | None = field(default=None, repr=False, metadata=settings.NEVER_FROM_FILE)
    sign_key_file: Path | None = None
    trust_folder: bool = False
    group: str | None = None
    local_tier: Path | None = None
    local_tier_bytes: int = 10 * 2**30
    revalidate_s: float = 0.0
    retry_s: float = 10.0
    max_bytes: Bytes | None = None
    max_age: Seconds | None = None
    keep_versions: int | None = None
    storage_options: StorageOptions | None = field(default=None, repr=False)
    backend: Literal["local", "shared"] = "local"
    secrets_id: str = field(default="", repr=False, metadata=settings.NEVER_FROM_FILE)

    def __post_init__(self) -> None:
        """Refuse values that cannot work, with the option's name."""
        lows = {"lease_s": 0.05, "wait_s": 0.0, "revalidate_s": 0.0, "retry_s": 0.0}
        for name, low in lows.items():
            value = getattr(self, name)
            if value is not None and not low <= value < math.inf:
                raise SettingsError(name, value, f"a number of seconds from {low}")
        for name in ("local_tier_bytes", "max_bytes", "max_age", "keep_versions"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise SettingsError(name, value, "a number above 0")

    @property
    def building(self) -> dict[str, Any]:
        """What `entries.entry.build` takes from here."""
        codec, level = self.compress.codec, self.compress.level
        return {"codec": codec, "level": level, "key": self.sign_key}

    @property
    def key_missing(self) -> bool:
        """Whether the store is signed and this process has not found the key."""
        return self.secrets_id.startswith(_SIGNED) and self.sign_key is None

    def without_secrets(self) -> Self:
        """These options for a pickle."""
        public = _public(self.storage_options or {})
        return replace(self, sign_key=None, storage_options=StorageOptions(public))

    def with_secrets(self) -> Self:
        """These options with their secrets, found as this process's parent found them."""
        key, storage_options = _known.get(self.secrets_id, (None, self.storage_options))
        if key is None and self.secrets_id.startswith(_SIGNED):
            key = _find_key(settings.load(SharedOptions, "joblib").sign_key, self.sign_key_file)
            if key is not None and _id_of(key) not in self.secrets_id:
                key = None
        return replace(self, sign_key=key, storage_options=storage_options)


_known: dict[str, tuple[Secret | None, StorageOptions | None]] = {}
"""The secrets that this process was given, for options that come back from a pickle."""


def _id_of(secret: bytes) -> str:
    return hashlib.sha256(b"mlops-ext joblib\0" + secret).hexdigest()[:16]


def _public(given: Mapping[str, Any]) -> dict[str, Any]:
    """What of the options is no secret."""
    return {
        name: _public(value) if isinstance(value, Mapping) else value
        for name, value in given.items()
        if not _SECRET.search(name)
    }


def _find_key(key: Secret | None, file: Path | None) -> Secret | None:
    """The key, given or from its file.

    Raises:
        SettingsError: the file cannot be read, or is empty.
    """
    if key is not None or file is None:
        return key
    try:
        found = file.expanduser().read_bytes().strip()
    except OSError as error:
        raise SettingsError("sign_key_file", str(file), f"a file to read ({error})") from error
    if not found:
        raise SettingsError("sign_key_file", str(file), "a file that holds the key")
    return Secret(found)


def read_options(given: Mapping[str, Any]) -> SharedOptions:
    """The options of a store: those given, over the settings' section ``joblib``.

    Raises:
        SettingsError: an option is unknown or has a value that cannot be used, or a variable of
            the environment is named like an option and is none.
    """
    names = [each.name for each in fields(SharedOptions) if each.name not in _INTERNAL]
    for name in given:
        if name not in names:
            raise UnknownSettingError(f"backend_options[{name!r}]", name, names)
    if given.get("sign_key") is not None:  # a text such as "none" is a key too
        try:
            given = {**given, "sign_key": Secret.parse(given["sign_key"])}
        except ValueError as error:
            raise InvalidSettingsError("sign_key", [], str(error)) from None
    read = settings.load(SharedOptions, "joblib", arguments=given)
    for name, _ in settings.unknown_variables():
        if name.startswith(_PREFIX):
            raise UnknownSettingError(name, name.removeprefix(_PREFIX).lower(), names)
    key = _find_key(read.sign_key, read.sign_key_file)
    storage = repr(sorted((read.storage_options or {}).items(), key=str)).encode()
    secrets_id = f"{_SIGNED if key else ''} {_id_of(key or b'')} {_id_of(storage)}"
    _known[secrets_id] = key, read.storage_options
    mode = read.mmap_mode
    if mode is not None:
        mode = None if read.compress.codec else "r" if mode == "r" else "c"
    return replace(read, mmap_mode=mode, sign_key=key, secrets_id=secrets_id)
