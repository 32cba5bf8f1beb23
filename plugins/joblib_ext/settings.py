"""The options of the shared backend, checked, each with the reason for its default."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mlops_ext import settings
from mlops_ext.errors import SettingsError, UnknownSettingError
from mlops_ext.files import Durability

__all__ = ["CODECS", "SharedOptions", "read_options"]

CODECS = ("", "zlib", "gzip", "bz2", "lzma", "xz", "lz4")
"""Compressors by the number that stands in an entry; 0 is none."""
_DEFAULT_LEVEL = 3
"""What joblib takes for ``compress=True``: most of the gain at a fraction of the time."""
_MAX_LEVEL = 9
_MMAP_MODES = (None, "r", "c", "r+", "w+")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedOptions:
    """What ``Memory(..., backend="shared", backend_options={...})`` understands.

    Attributes:
        codec: compressor, one of `CODECS`.
        level: compression level, 0 to 9.
        mmap_mode: "r" or "c", or None to load into memory. "r+" and "w+" become "c": an entry
            is immutable, so that writing to a result must not change what others read.
    """

    codec: str = ""
    level: int = _DEFAULT_LEVEL
    mmap_mode: str | None = None
    durability: Literal["none", "fsync"] = "none"
    """A cache can be computed again; "fsync" costs milliseconds an entry."""
    verify: Literal["always", "first", "never"] = "always"
    """When a memory-mapped entry is checked. Always: a wrong value costs more than a reading. With
    `sign_key` it is always checked: what is not signed is never unpickled."""
    single_flight: bool = True
    """One process computes a key, the others wait: a stampede is the costlier default."""
    lease_s: float = 5.0
    """A lease without a heartbeat for so long is dead. Long enough for a starved heartbeat thread
    on a loaded machine, short enough to wait for after a crash."""
    wait_s: float = 600.0
    """Longest wait for a living owner. Then this process computes too: waiting for ever would let
    a hung owner hang everybody."""
    sign_key: bytes | None = field(default=None, repr=False)
    """Secret shared by all who use the cache. None: everybody who can write the folder is trusted
    with running code in those who read it, as with joblib's own backend."""
    trust_folder: bool = False
    """Do not warn where everybody can write an unsigned store. False: few mean it to be so."""
    local_tier: Path | None = None
    """Folder on the node's own disk for verified copies. None: most shared caches do without."""
    local_tier_bytes: int = 10 * 2**30
    """Limit of the local tier: 10 GiB fit the scratch disk of most nodes."""

    def __post_init__(self) -> None:
        """Refuse values that cannot work, with the option's name."""
        for name, low in (("lease_s", 0.05), ("wait_s", 0.0)):
            value = getattr(self, name)
            if not low <= value < float("inf"):
                raise SettingsError(name, value, f"a number of seconds from {low}")
        if self.local_tier_bytes <= 0:
            raise SettingsError("local_tier_bytes", self.local_tier_bytes, "a number above 0")
        if self.sign_key is not None and not self.sign_key:
            raise SettingsError("sign_key", "", "a secret that is not empty, or None")

    @property
    def sync(self) -> Durability:
        """The durability as core's functions take it."""
        return Durability.FSYNC if self.durability == "fsync" else Durability.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """The options as `mlops_ext.settings` reads them from files and variables."""

    durability: Literal["none", "fsync"] = "none"
    verify: Literal["always", "first", "never"] = "always"
    single_flight: bool = True
    lease_s: float = 5.0
    wait_s: float = 600.0
    sign_key: str | None = field(default=None, repr=False, metadata=settings.NEVER_FROM_FILE)
    trust_folder: bool = False
    local_tier: Path | None = None
    local_tier_bytes: int = 10 * 2**30


def read_options(given: Mapping[str, Any]) -> SharedOptions:
    """The options of a store: those given, over the settings' section ``joblib``.

    Raises:
        SettingsError: an option is unknown or has a value that cannot be used.
    """
    rest = dict(given)
    codec, level = _read_compress(rest.pop("compress", None))
    mmap_mode = rest.pop("mmap_mode", None)
    if mmap_mode not in _MMAP_MODES:
        raise SettingsError("mmap_mode", mmap_mode, "None, 'r', 'c', 'r+' or 'w+'")
    names = list(_Texts.__dataclass_fields__)
    for name in rest:
        if name not in names:
            known = [*names, "compress", "mmap_mode"]
            raise UnknownSettingError(f"backend_options[{name!r}]", name, known)
    key = rest.pop("sign_key", None)
    if isinstance(rest.get("local_tier"), str):
        rest["local_tier"] = Path(rest["local_tier"])
    texts = settings.load(_Texts, "joblib", arguments=rest)
    secret = texts.sign_key if key is None else key
    if isinstance(secret, str):
        secret = secret.encode()
    if secret is not None and not isinstance(secret, bytes):
        raise SettingsError("sign_key", type(secret).__name__, "a text or bytes")
    return SharedOptions(
        codec=codec,
        level=level,
        mmap_mode=None if codec or mmap_mode is None else "r" if mmap_mode == "r" else "c",
        sign_key=secret,
        **{name: getattr(texts, name) for name in names if name != "sign_key"},
    )


def _read_compress(value: object) -> tuple[str, int]:
    """Joblib's ``compress``: bool, level, name, or (name, level)."""
    if value is None or value is False or value == 0:
        return "", _DEFAULT_LEVEL
    name: object = "zlib"
    level: object = _DEFAULT_LEVEL if value is True else value
    if isinstance(value, str):
        name, level = value, _DEFAULT_LEVEL
    elif isinstance(value, (tuple, list)):
        if len(value) != 2:  # noqa: PLR2004  # a pair
            raise SettingsError("compress", value, "a pair of name and level")
        name, level = value
    if not isinstance(level, int) or isinstance(level, bool) or not 0 <= level <= _MAX_LEVEL:
        raise SettingsError("compress", value, f"a level from 0 to {_MAX_LEVEL}")
    if not isinstance(name, str) or name not in CODECS[1:]:
        raise SettingsError("compress", value, f"one of {', '.join(CODECS[1:])}")
    return name, level
