"""Temporary directories: a root of the user's choice, one directory a run and process, a reaper.

The root comes from an argument, from ``MLOPS_EXT_TEMP_DIR``, from ``temp_dir`` in
``[tool.mlops-ext]``, or is the one of `tempfile`. Below it every run of every process gets a
directory of its own, with a marker beside it that names the owner and is locked as long as the
owner lives. `reap` removes what dead processes left, and never what a live one uses.
"""

from __future__ import annotations

import atexit
import errno
import gc
import glob
import logging
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Container, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from mlops_ext import files, settings
from mlops_ext.errors import TempDirError
from mlops_ext.files import markers
from mlops_ext.processes import identity
from mlops_ext.processes.forks import in_forked_child
from mlops_ext.processes.identity import Liveness
from mlops_ext.processes.open_files import holder

__all__ = [
    "Reaped",
    "RunDirectory",
    "check_root",
    "for_process",
    "full_disk",
    "reap",
    "remove",
    "root",
]

log = logging.getLogger(__name__)

_PREFIX = "mlops-ext-"
# A start spends at most this long on what dead processes left; the next start continues.
_REAP_BUDGET_S = 10.0
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Names tried for a new directory; each is random, so a second try is rare already.
_TRIES = 8


def root(path: str | Path | None = None) -> Path:
    """The directory below which temporary directories are made.

    It is *path*, else the setting ``temp_dir``, else what `tempfile` finds. One that cannot be
    used is reported in a warning and replaced by `tempfile`'s: a step that has finished must not
    fail because of a scratch directory. Ask `check_root` if you want an error instead.

    Raises:
        TempDirError: `tempfile` finds no place either.
    """
    chosen = settings.load(settings.CoreSettings, arguments={"temp_dir": path}).temp_dir
    if chosen is None:
        return _warned_of(_system_root())
    try:
        return _warned_of(check_root(chosen))
    except TempDirError as error:
        instead = _system_root()
        _warn_once(f"{error}; using {instead} instead")
        return instead


def _warned_of(chosen: Path) -> Path:
    """Return *chosen*; warn if every user may rename and remove what is in there."""
    with suppress(OSError):
        mode = chosen.stat().st_mode
        if os.name == "posix" and mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            _warn_once(
                f"any user can rename and remove the temporary files in {chosen}: set its sticky"
                f" bit (chmod +t {chosen}) or choose another root"
            )
    return chosen


def _system_root() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except OSError as error:  # its message names every directory that was tried
        raise TempDirError("of the system", error.strerror or str(error)) from error


def check_root(path: str | Path) -> Path:
    """*path*, absolute, made if it did not exist, and written to once.

    Raises:
        TempDirError: it cannot be made or written to.
    """
    chosen = Path(path)
    try:
        chosen = chosen.expanduser().absolute()
    except RuntimeError as error:  # "~" where there is no home directory
        raise TempDirError(chosen, str(error)) from error
    with _named(chosen):
        for folder in reversed([chosen, *chosen.parents]):
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)  # whatever the umask
        with tempfile.TemporaryFile(dir=chosen) as probe:
            probe.write(b"\0")
    return chosen


@dataclass(slots=True)
class RunDirectory:
    """A directory that belongs to one run in one process, until `close` or the process's end.

    Attributes:
        path: the directory; its mode is 0700.
        marker: the file beside it that names the owner.
    """

    path: Path
    marker: Path
    _descriptor: int
    _inode: int
    _pid: int = field(default_factory=os.getpid)

    @classmethod
    def create(cls, root: Path, run: str = "") -> RunDirectory:
        """A fresh directory below *root*; *run* becomes part of its name.

        Raises:
            TempDirError: it cannot be made there.
        """
        name = re.sub(r"[^\w.-]+", "_", run)[:40]
        for _ in range(_TRIES):
            path = root / f"{_PREFIX}{name}-{os.getpid()}-{secrets.token_hex(6)}"
            marker = path.with_name(path.name + markers.SUFFIX)
            with _named(root):
                descriptor = markers.create(marker)
                if descriptor is None:
                    continue
                try:
                    path.mkdir(mode=0o700)
                    inode = path.lstat().st_ino
                    markers.write(marker, descriptor, inode)
                except OSError:
                    with suppress(OSError):
                        path.rmdir()
                    markers.give_up(marker, descriptor)
                    raise
            return cls(path, marker, descriptor, inode)
        raise TempDirError(root, f"no free name after {_TRIES} tries")

    def make(self, prefix: str = "") -> Path:
        """A fresh, empty directory inside.

        Raises:
            TempDirError: it cannot be made; the message names the place and its size.
        """
        with _named(self.path):
            return Path(tempfile.mkdtemp(prefix=prefix, dir=self.path))

    def close(self) -> bool:
        """Remove the directory and give up its marker; a no-op in a forked child.

        Another directory, which somebody has put in its place, is left alone.

        Returns:
            Whether the directory is gone. If it is not, the marker stays, no longer locked, and a
            later `reap` goes on from there.
        """
        if self._descriptor < 0 or self._pid != os.getpid():
            return True
        gone = remove(self.path, inode=self._inode)
        if gone:
            markers.give_up(self.marker, self._descriptor)
        else:
            os.close(self._descriptor)
        self._descriptor = -1
        return gone


_open: dict[tuple[str, str], RunDirectory] = {}
_lock = threading.Lock()


def for_process(run: str = "", path: str | Path | None = None) -> RunDirectory:
    """The directory of this process for *run*, the same one on every call; removed at exit.

    The first call for a root also reaps there.

    Raises:
        TempDirError: not even `tempfile`'s own place can be used.
    """
    chosen = root(path)
    key = (str(chosen), run)
    with _lock:
        found = _open.get(key)
        is_first = not any(known_root == str(chosen) for known_root, _ in _open)
    if found is not None and found.path.is_dir():
        return found
    if is_first:
        reap(chosen, budget_s=_REAP_BUDGET_S)
    made = RunDirectory.create(chosen, run)
    with _lock:  # only the table: reaping and closing run finalizers, and import
        current = _open.get(key)
        if current is found:
            _open[key] = current = made
    for unused in (found, made):  # cleaned away from outside; or another thread was first
        if unused is not None and unused is not current:
            unused.close()
    assert current is not None
    return current


@atexit.register
def _close_all() -> None:
    for directory in list(_open.values()):
        directory.close()
    _open.clear()


@in_forked_child
def _after_fork() -> None:
    """A child owns none of its parent's directories."""
    global _lock
    _open.clear()
    _lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reaped:
    """What `reap` did below one root.

    Attributes:
        removed: directories that dead processes left, now gone.
        live: directories in use.
        unknown: directories whose owner cannot be judged from here (another machine's, or of
            another container on a shared disk): kept.
        failed: left by dead processes, but could not be removed.
    """

    removed: tuple[Path, ...] = ()
    live: tuple[Path, ...] = ()
    unknown: tuple[Path, ...] = ()
    failed: tuple[Path, ...] = ()


def reap(root: Path, *, budget_s: float | None = None) -> Reaped:
    """Remove what dead processes of this user left below *root*.

    Args:
        root: where directories were made.
        budget_s: stop beginning removals after this long; None for no limit.
    """
    found: dict[str, list[Path]] = {"removed": [], "live": [], "unknown": [], "failed": []}
    deadline = None if budget_s is None else time.monotonic() + budget_s
    here, booted = identity.own_identity(), identity.booted_at()
    local = identity.on_local_disk(root)
    for name in sorted(glob.glob(f"{_PREFIX}*{markers.SUFFIX}", root_dir=root)):  # noqa: PTH207
        marker = root / name
        if deadline is not None and time.monotonic() > deadline:
            break
        with markers.opened(marker) as descriptor:
            if descriptor is None:
                continue
            liveness, inode = markers.judge(marker, descriptor, here, local=local, booted=booted)
            path = marker.with_name(marker.name.removesuffix(markers.SUFFIX))
            if liveness is not Liveness.DEAD:
                found["live" if liveness is Liveness.ALIVE else "unknown"].append(path)
                continue
            gone = remove(path, inode=inode) if inode else _remove_empty(path)
            found["removed" if gone else "failed"].append(path)
        if gone:
            with suppress(OSError):
                marker.unlink()
    return Reaped(**{name: tuple(paths) for name, paths in found.items()})


@contextmanager
def _named(path: Path, only: Container[int | None] | None = None) -> Iterator[None]:
    """Raise an OSError of the block (with *only*: of these numbers) as one that names *path*."""
    try:
        yield
    except OSError as error:
        if only is None or error.errno in only:
            raise TempDirError(path, _describe(error, path)) from error
        raise


def full_disk(path: Path) -> AbstractContextManager[None]:
    """Turn "no space left" inside the block into an error that names *path* and its size."""
    return _named(path, _FULL)


def _describe(error: OSError, path: Path) -> str:
    """What went wrong at *path*; for a full disk with its size."""
    what = error.strerror or str(error)
    if error.errno not in _FULL:
        return what
    with suppress(OSError):
        usage = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists()))
        return f"{what} ({usage.free:,} of {usage.total:,} bytes are free)"
    return what


def _remove_empty(path: Path) -> bool:
    """Remove a directory whose owner died before it could put anything there."""
    try:
        path.rmdir()
    except OSError as error:
        return isinstance(error, FileNotFoundError)
    return True


def remove(path: Path, *, inode: int | None = None) -> bool:
    """Remove *path*; if that fails, again after a garbage collection that may close its files.

    With *inode* only the directory that has it is removed. Never raises. Below a `RunDirectory`
    what is still in use goes when that is closed, or by a later `reap`.

    Returns:
        Whether it is gone. What could not be removed is logged once, with its holder.
    """
    if files.remove(path, patience_s=0, inode=inode).complete:
        return True
    gc.collect()
    removal = files.remove(path, inode=inode)
    if removal.complete:
        return True
    left, held = removal.left[0], holder(path)
    _warn_once(
        f"{path} could not be removed: {left.path.name}: {left.error.strerror or left.error}"
        f"{held and f'; held open by {held}'}. A later start removes it, once it is free"
    )
    return False


_warned: set[str] = set()


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        log.warning("%s", message)
