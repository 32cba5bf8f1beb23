"""Names of temporary files that no other process, host or boot can also choose."""

from __future__ import annotations

import enum
import hashlib
import os
import re
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_ext.processes.forks import in_forked_child

__all__ = [
    "TEMP_SUFFIX",
    "Liveness",
    "TempName",
    "own_boot",
    "own_host",
    "parse_temp_name",
    "process_alive",
    "temp_name",
]

TEMP_SUFFIX = ".tmp"
"""Every temporary name ends with it, so that house-keeping finds them with one test."""

_MAX_BYTES = 255
"""Longest file name that ext4, XFS, NFS and NTFS all accept."""
_HOST_CHARS = 32
"""Enough to tell hosts apart for a reader; uniqueness rests on the random part."""
_PATTERN = re.compile(
    r"(?P<stem>.*)\.(?P<host>\w+)-(?P<boot>[0-9a-f]{8})-(?P<pid>[0-9a-f]+)"
    r"-(?P<thread>[0-9a-f]+)-(?P<random>[0-9a-f]{16})\.tmp",
    re.DOTALL,
)


class Liveness(enum.Enum):
    """What can be said of the process that made a name."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class TempName:
    """The parts of a temporary name.

    Attributes:
        stem: what the name stands for, as the caller gave it (perhaps shortened).
        host: host name of the maker, reduced to word characters.
        boot: eight hex digits that identify the maker's boot and PID namespace.
        pid: process id, as the maker saw it.
        thread: thread identifier in the maker.
        random: sixteen random hex digits.
    """

    stem: str
    host: str
    boot: str
    pid: int
    thread: int
    random: str

    def liveness(self) -> Liveness:
        """Whether the maker still runs; UNKNOWN where it ran elsewhere.

        A pid can be asked after only on the same host, in the same boot and PID namespace. A pid
        that was given out again counts as ALIVE: the error is on the side of keeping a file.
        """
        if (self.host, self.boot) != (own_host(), own_boot()):
            return Liveness.UNKNOWN
        return Liveness.ALIVE if process_alive(self.pid) else Liveness.DEAD


class _Process:
    """What is constant for this process; a fork starts a new one."""

    __slots__ = ("boot", "host", "prefix")

    def __init__(self) -> None:
        self.host = re.sub(r"\W", "_", socket.gethostname(), flags=re.ASCII)[:_HOST_CHARS] or "_"
        self.boot = _boot_token()
        self.prefix = f"{self.host}-{self.boot}-{os.getpid():x}-"


_process: _Process | None = None


@in_forked_child
def _forget() -> None:
    global _process
    _process = None


def _current() -> _Process:
    global _process
    if _process is None:
        _process = _Process()
    return _process


def _boot_token() -> str:
    """Eight hex digits that differ between boots and between PID namespaces of one boot."""
    parts = []
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    except OSError:
        parts.append(b"")  # not Linux: the host, the pid and the random part remain
    try:
        parts.append(str(Path("/proc/self/ns/pid").stat().st_ino).encode())
    except OSError:
        parts.append(b"")
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:8]


def own_host() -> str:
    """This host's name as it stands in temporary names."""
    return _current().host


def own_boot() -> str:
    """The token of this boot and PID namespace, as it stands in temporary names."""
    return _current().boot


def temp_name(stem: str = "") -> str:
    """A file name that nobody else makes: ``stem.host-boot-pid-thread-random.tmp``.

    The random part alone has 64 bits; the others say who made it. Host, boot and pid keep two
    machines apart whose random generators started alike (cloned virtual machines).

    Args:
        stem: what the file will become; shortened where the name would pass 255 bytes. It may
            not hold a path separator.
    """
    if "/" in stem or (os.altsep and os.altsep in stem) or os.sep in stem or "\0" in stem:
        raise ValueError(f"stem = {stem!r} must be a file name without a path")
    tail = f".{_current().prefix}{threading.get_ident():x}-{os.urandom(8).hex()}{TEMP_SUFFIX}"
    room = _MAX_BYTES - len(tail)
    if len(stem) * 4 > room:  # could be too long in UTF-8: look closely
        stem = os.fsencode(stem)[:room].decode(sys.getfilesystemencoding(), "ignore")
    return stem + tail


def parse_temp_name(name: str) -> TempName | None:
    """The parts of a name that `temp_name` made, or None for any other name."""
    found = _PATTERN.fullmatch(name)
    if found is None:
        return None
    return TempName(
        stem=found["stem"],
        host=found["host"],
        boot=found["boot"],
        pid=int(found["pid"], 16),
        thread=int(found["thread"], 16),
        random=found["random"],
    )


def process_alive(pid: int) -> bool:
    """Whether a process with this id exists in this PID namespace, whoever owns it."""
    if pid <= 0:
        return False
    if sys.platform == "win32":
        return _process_alive_windows(pid)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True


def _process_alive_windows(pid: int) -> bool:
    """As `process_alive`; ``os.kill(pid, 0)`` would end the process on Windows."""
    import ctypes

    query_limited, synchronize, wait_timeout, access_denied = 0x1000, 0x0010_0000, 0x102, 5
    kernel: Any = getattr(ctypes, "WinDLL")("kernel32", use_last_error=True)  # noqa: B009  # absent elsewhere
    handle = kernel.OpenProcess(query_limited | synchronize, False, pid)
    if not handle:
        return bool(getattr(ctypes, "get_last_error")() == access_denied)  # noqa: B009  # absent elsewhere
    try:
        return bool(kernel.WaitForSingleObject(handle, 0) == wait_timeout)
    finally:
        kernel.CloseHandle(handle)
