"""What a file system can do, found by doing it: a platform's name does not tell."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mlops_ext.files.names import temp_name
from mlops_ext.files.publish import write_new

__all__ = ["Capabilities", "probe"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What the file system below one directory did when asked.

    Attributes:
        writable: a file can be made.
        hard_links: a second name can be made, and is refused where the name is taken.
        replace: a rename takes the place of an existing file.
        replace_open: the same while the file that is replaced is open.
        remove_open: an open file can be removed.
        rename_open: an open file can be renamed.
        sync_directory: a directory can be synced.
        case_sensitive: two names that differ in case only are two files.
    """

    writable: bool
    hard_links: bool
    replace: bool
    replace_open: bool
    remove_open: bool
    rename_open: bool
    sync_directory: bool
    case_sensitive: bool


def probe(directory: str | Path) -> Capabilities:
    """What the file system of *directory* can do; costs about twenty system calls.

    It makes a few small files with unique names in the directory and removes them. A directory
    that cannot be written answers with everything False.
    """
    base = Path(directory) / temp_name("probe")
    try:
        base.mkdir()
    except OSError:
        return Capabilities(**dict.fromkeys(Capabilities.__slots__, False))
    try:
        return Capabilities(
            writable=_works(lambda: write_new(base / "writable", [b"x"])),
            hard_links=_works(lambda: _link(base)),
            replace=_works(lambda: _replace(base)),
            replace_open=_works(lambda: _replace_open(base)),
            remove_open=_works(lambda: _while_open(base / "remove", os.unlink)),
            rename_open=_works(
                lambda: _while_open(base / "move", lambda path: os.rename(path, f"{path}d"))  # noqa: PTH104  # as is
            ),
            sync_directory=_works(lambda: _sync(base)),
            case_sensitive=_works(lambda: _two_cases(base)),
        )
    finally:
        for entry in (*base.iterdir(), base):
            with contextlib.suppress(OSError):
                entry.rmdir() if entry == base else entry.unlink()


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except (OSError, NotImplementedError, AttributeError):
        return False
    return True


def _link(base: Path) -> None:
    source, second = base / "link", base / "linked"
    write_new(source, [b"x"])
    os.link(source, second)
    try:
        os.link(source, second)
    except FileExistsError:
        return
    raise OSError("a link replaced an existing name")


def _replace(base: Path) -> None:
    write_new(base / "old", [b"old"])
    write_new(base / "new", [b"new"])
    os.replace(base / "new", base / "old")  # noqa: PTH105  # as is
    if (base / "old").read_bytes() != b"new":
        raise OSError("a rename did not replace")


def _replace_open(base: Path) -> None:
    write_new(base / "fresh", [b"new"])
    _while_open(base / "held", lambda path: os.replace(base / "fresh", path))  # noqa: PTH105  # as is


def _while_open(path: Path, action: Callable[[Path], object]) -> None:
    write_new(path, [b"x"])
    with path.open("rb"):
        action(path)


def _sync(base: Path) -> None:
    descriptor = os.open(base, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _two_cases(base: Path) -> None:
    write_new(base / "Case", [b"x"])
    write_new(base / "case", [b"x"])
