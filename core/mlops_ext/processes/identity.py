"""Process identity and liveness, for run directories, temporary files and leases.

A process id alone says little: ids are used again, containers count their own, and a directory
may be shared with other machines. So an identity is a boot, the namespaces that give ids and start
times their meaning, an id and a start time. `verdict` is pure; the rest asks the system.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import re
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mlops_ext.processes.forks import in_forked_child

# How far a marker must predate this boot: a clock that is set at boot may move by seconds.
_CLOCK_SLACK_S = 60.0

# A marker is written within milliseconds; after a day without a lock its owner is gone.
_HALF_WRITTEN_S = 86_400.0

# Enough to tell hosts apart for a reader.
_HOST_CHARS = 32

# File systems that one kernel uses alone, where all its processes see each other's flock.
_LOCAL = frozenset({"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "tmpfs", "overlay"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """What tells one process from every other process of any host and boot.

    Attributes:
        host: name of the machine or container.
        boot: see `boot_id`.
        namespaces: the pid and time namespaces, "" if the system has none.
        pid: process id in that namespace.
        started: start of the process as the system tells it, "" if it does not.
    """

    host: str
    boot: str
    namespaces: str
    pid: int
    started: str

    def __post_init__(self) -> None:
        """Refuse a number that cannot be a process id."""
        if self.pid <= 0:
            raise ValueError(f"pid = {self.pid}: expected 1 or more")


class Liveness(enum.Enum):
    """Whether a process runs, as far as that can be proved. DEAD is a proof, never a guess."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the system says about a marker and its owner.

    Attributes:
        held: somebody holds the marker's lock; None if locks do not work.
        started: start of the process that has the owner's id now; None if there is none,
            "" if the system does not tell.
        local: the root lies on a file system that this kernel uses alone.
        written: when the marker was written, in seconds since the epoch.
        now: the time now, in seconds since the epoch.
        booted: when this machine booted, in seconds since the epoch; None if unknown.
    """

    held: bool | None
    started: str | None
    local: bool
    written: float
    now: float
    booted: float | None


def verdict(owner: ProcessIdentity | None, here: ProcessIdentity, evidence: Evidence) -> Liveness:
    """Decide whether *owner* is alive, as seen by the process *here*.

    DEAD is a proof, never a guess. What is left open: a marker on a shared root whose owner runs
    on another machine or in another pid namespace stays UNKNOWN.
    """
    if evidence.held:
        return Liveness.ALIVE
    if owner is None:  # half written: its owner died, or is at it now
        is_old = evidence.now - evidence.written > _HALF_WRITTEN_S
        is_dead = is_old and evidence.local and evidence.held is False
        return Liveness.DEAD if is_dead else Liveness.UNKNOWN
    same_place = (owner.host, owner.namespaces) == (here.host, here.namespaces)
    if not (owner.boot and here.boot):  # another machine may have this host's name too
        lives = same_place and _by_process(owner, evidence) is Liveness.ALIVE
        return Liveness.ALIVE if lives else Liveness.UNKNOWN
    if owner.boot != here.boot:
        # One kernel at a time uses a local file system, so an owner of an earlier boot is gone.
        # The date rules out a guest that shares its host's disk through virtiofs or 9p.
        before = evidence.booted is not None and (
            evidence.written < evidence.booted - _CLOCK_SLACK_S
        )
        return Liveness.DEAD if evidence.local and before else Liveness.UNKNOWN
    if owner.namespaces == here.namespaces:
        return _by_process(owner, evidence)
    # Ids mean nothing across namespaces, but a lock does within one kernel.
    return Liveness.DEAD if evidence.local and evidence.held is False else Liveness.UNKNOWN


def _by_process(owner: ProcessIdentity, evidence: Evidence) -> Liveness:
    if evidence.started is None:
        return Liveness.DEAD
    if "" in {evidence.started, owner.started}:
        return Liveness.ALIVE
    return Liveness.ALIVE if evidence.started == owner.started else Liveness.DEAD


_NAMESPACES = ("/proc/self/ns/pid", "/proc/self/ns/time")


def own_identity() -> ProcessIdentity:
    """The identity of the calling process."""
    pid = os.getpid()
    return ProcessIdentity(
        host=socket.gethostname(),
        boot=boot_id(),
        namespaces=" ".join(filter(None, map(_link_text, _NAMESPACES))),
        pid=pid,
        started=start_of(pid) or "",
    )


@functools.lru_cache(maxsize=1)
def own_host() -> str:
    """This host's name in word characters, as it stands in the names of temporary files."""
    return re.sub(r"\W", "_", socket.gethostname(), flags=re.ASCII)[:_HOST_CHARS] or "_"


@functools.lru_cache(maxsize=1)
def own_boot() -> str:
    """Eight hex digits that differ between boots, and between PID namespaces of one boot."""
    try:
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:  # not Linux
        namespace = ""
    boot = boot_id()
    return hashlib.sha256(f"{boot}\0{namespace}".encode()).hexdigest()[:8]


def boot_id() -> str:
    """An identifier of this boot of this machine; "" if the system has none.

    Windows tells machines, not boots, apart; there start times tell an id that is used again.
    """
    if sys.platform == "win32":
        import winreg

        key = r"SOFTWARE\Microsoft\Cryptography"
        try:
            with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
                return f"{winreg.QueryValueEx(opened, 'MachineGuid')[0]} {socket.gethostname()}"
        except OSError:
            return ""
    if sys.platform == "darwin":
        import ctypes

        text, size = ctypes.create_string_buffer(64), ctypes.c_size_t(64)
        name = b"kern.bootsessionuuid"
        failed = ctypes.CDLL(None).sysctlbyname(name, text, ctypes.byref(size), None, 0)
        return "" if failed else text.value.decode()
    return _read("/proc/sys/kernel/random/boot_id")


@in_forked_child
def _forget() -> None:
    """A child may be in another PID namespace than its parent."""
    own_host.cache_clear()
    own_boot.cache_clear()


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs in this PID namespace, of any user."""
    return start_of(pid) is not None


def is_stopped(pid: int) -> bool:
    """Whether process *pid* was stopped (SIGSTOP, a debugger); False if it cannot be told."""
    return _stat_of(pid)[:1] in (["T"], ["t"])


def start_of(pid: int) -> str | None:
    """When process *pid* started: None if it does not run, "" if that cannot be told.

    A number on Linux (ticks after the boot) and on Windows (100 ns since 1601).
    """
    if pid <= 0:
        return None
    if sys.platform == "win32":
        return _start_on_windows(pid)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError:  # it belongs to somebody else
        pass
    return _start_on_linux(pid) if sys.platform == "linux" else _start_by_psutil(pid)


def _start_on_linux(pid: int) -> str | None:
    if _link_text("/proc/self") != str(os.getpid()):
        return ""  # /proc shows another pid namespace: its numbers are not ours
    fields = _stat_of(pid)
    if not fields:
        return ""
    return None if fields[0] in {"Z", "X"} else fields[19]


def _stat_of(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on; empty if there is no such file."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _start_by_psutil(pid: int) -> str | None:
    try:
        import psutil
    except ImportError:
        return ""
    try:
        return repr(psutil.Process(pid).create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.Error:
        return ""


def _start_on_windows(pid: int) -> str | None:
    """The creation time that Windows keeps; `os.kill` would end the process there."""
    if sys.platform != "win32":
        return ""
    import ctypes
    from ctypes import wintypes

    kernel = ctypes.WinDLL("kernel32", use_last_error=True)
    kernel.OpenProcess.restype = wintypes.HANDLE
    handle = kernel.OpenProcess(_QUERY_LIMITED_INFORMATION, False, pid)
    if not handle:
        return None if ctypes.get_last_error() == _NO_SUCH_PROCESS else ""
    try:
        handle = wintypes.HANDLE(handle)
        code = wintypes.DWORD()
        if kernel.GetExitCodeProcess(handle, ctypes.byref(code)) and code.value != _STILL_ACTIVE:
            return None
        created, *others = (wintypes.FILETIME() for _ in range(4))
        times = (ctypes.byref(each) for each in (created, *others))
        if not kernel.GetProcessTimes(handle, *times):
            return ""
        return f"{created.dwHighDateTime << 32 | created.dwLowDateTime}"
    finally:
        kernel.CloseHandle(handle)


_QUERY_LIMITED_INFORMATION = 0x1000
_NO_SUCH_PROCESS = 87  # ERROR_INVALID_PARAMETER: what OpenProcess says of an unused id
_STILL_ACTIVE = 259


def lock(descriptor: int) -> bool | None:
    """Take the lock of an open marker: False if another holds it, None if none can be had.

    The lock ends with the process, however it ends. It is inherited by forked children.
    """
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # a byte beyond the text: others may read
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def booted_at() -> float | None:
    """When this machine booted, in seconds since the epoch, or None if unknown."""
    linux = sys.platform == "linux"
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) if linux else None


def on_local_disk(path: Path) -> bool:
    """Whether *path* lies on a file system that only this kernel uses."""
    if sys.platform != "linux":
        return False
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in _read("/proc/self/mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind in _LOCAL


def _link_text(path: str) -> str:
    try:
        return str(Path(path).readlink())
    except OSError:
        return ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
