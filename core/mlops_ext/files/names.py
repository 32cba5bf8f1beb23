"""Names of temporary files that no other process, host or boot can also choose."""

from __future__ import annotations

import functools
import os
import re
import sys
import threading

from mlops_ext.processes.identity import Liveness, boot_id, is_alive, own_boot, own_host

TEMP_SUFFIX = ".tmp"
"""Every temporary name ends with it, so that house-keeping finds them with one test."""

# Longest file name that ext4, XFS, NFS and NTFS all accept.
_MAX_BYTES = 255
_PATTERN = re.compile(
    r".*\.(?P<host>\w+)-(?P<boot>[0-9a-f]{8})-(?P<pid>[0-9a-f]+)-[0-9a-f]+-[0-9a-f]{16}\.tmp",
    re.DOTALL,
)


@functools.lru_cache(maxsize=1)
def _own_prefix(pid: int) -> str:
    return f"{own_host()}-{own_boot()}-{pid:x}-"


def temp_name(stem: str = "") -> str:
    """A file name that nobody else makes: ``stem.host-boot-pid-thread-random.tmp``.

    The random part alone has 64 bits; the others say who made it. Host, boot and pid keep two
    machines apart whose random generators started alike (cloned virtual machines).

    Args:
        stem: what the file will become; shortened if the name would pass 255 bytes. It may
            not hold a path separator.
    """
    if "/" in stem or (os.altsep and os.altsep in stem) or os.sep in stem or "\0" in stem:
        raise ValueError(f"stem = {stem!r} must be a file name without a path")
    thread, random = threading.get_ident(), os.urandom(8).hex()
    tail = f".{_own_prefix(os.getpid())}{thread:x}-{random}{TEMP_SUFFIX}"
    room = _MAX_BYTES - len(tail)
    if len(stem) * 4 > room:  # could be too long in UTF-8: look closely
        stem = os.fsencode(stem)[:room].decode(sys.getfilesystemencoding(), "ignore")
    return stem + tail


def liveness_of_maker(name: str) -> Liveness:
    """Whether the process that made *name* with `temp_name` still runs.

    UNKNOWN for any other name, and if the maker ran elsewhere: a pid can be asked after only on the
    same host, in the same boot and PID namespace. A pid that was given out again counts as ALIVE:
    the error is on the side of keeping a file.
    """
    found = _PATTERN.fullmatch(name)
    if found is None or (found["host"], found["boot"]) != (own_host(), own_boot()):
        return Liveness.UNKNOWN
    if is_alive(int(found["pid"], 16)):
        return Liveness.ALIVE
    return Liveness.DEAD if boot_id() else Liveness.UNKNOWN  # another host of the same name
