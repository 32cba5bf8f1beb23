"""Entries as files: reading, publishing, moving damaged ones aside, removing."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Sequence

from joblib_ext.entries.entry import is_foreign, token_of
from joblib_ext.entries.large_entry import FileSource, LargeEntry, Source, Verdict, judge
from joblib_ext.entries.payload import Buffer
from joblib_ext.settings import SharedOptions
from joblib_ext.stores.events import Events
from joblib_ext.stores.files.folders import group_of, make_own_folder, share
from joblib_ext.stores.files.moving import AMBIGUOUS, discard, set_aside
from joblib_ext.stores.files.statx import fresh_mtime
from joblib_ext.stores.layout import CODE_FILE, Layout
from joblib_ext.stores.reader import READ, read_file, read_head
from joblib_ext.stores.store import UNUSABLE, BaseStore, CodeVersion, Slot, View
from mlops_ext.files import publish as publish_file
from mlops_ext.files import remove, sync_directory, temp_name, write_new

# Smaller pieces are joined with their neighbours: a write is a round trip.
_JOIN = 1 << 16
_TRIES = 5
# A view that a cache made old gets these chances to become what the server has.
_REREAD_PAUSES_S = (0.0, 0.02, 0.1)


class EntryFiles(BaseStore):
    """The files of entries below one location. Errors of the file system end here as misses."""

    def __init__(self, location: str, options: SharedOptions) -> None:
        self.layout = Layout(location)
        self.options = options
        self.events = Events(self.layout.events, self.write)
        self.key: bytes | None = options.sign_key
        self.group = group_of(options.group)
        if self.group is not None:
            for name in ("items", "trash", "corrupt", "leases", "events"):
                _make(f"{self.layout.root}/{name}", self.group)

    def look(self, slot: Slot) -> View:
        """What stands at *slot*: a verified entry, an open large one, a lease, or None.

        One open and one read for what is small. What does not verify is looked at again past
        the client's caches, and then moved aside.
        """
        mapped = self.options.mmap_mode is not None
        try:
            found, _ = read_file(slot.path, slot.binding, self.key, mapped=mapped)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return self._look_closely(slot, error)
        return found or self._look_closely(slot, None)

    def _look_closely(self, slot: Slot, error: OSError | None) -> View:
        """Look again, with attributes from the server; what is still wrong is moved aside."""
        data = b""
        for pause_s in _REREAD_PAUSES_S:
            time.sleep(pause_s)
            error = None
            try:
                fresh_mtime(slot.path)  # the client asks, and drops what it knew
                found, data = read_file(slot.path, slot.binding, self.key)
            except FileNotFoundError:
                return None
            except OSError as caught:
                error = caught
                continue
            if found is not None:
                return found
        if error is not None:
            self.events.warn_once("read", f"a cached result could not be read: {error}", error)
            return UNUSABLE
        if is_foreign(data):
            return UNUSABLE
        return None if self.quarantine(slot) else UNUSABLE

    def quarantine(self, slot: Slot | LargeEntry) -> bool:
        """Move what stands at *path* aside, unless it verifies after all. True if it was moved."""
        path = slot.path
        aside = f"{self.layout.corrupt}/{temp_name(os.path.basename(path))[:-4]}"  # noqa: PTH119
        # A good one may come meanwhile.
        moved = _make(self.layout.corrupt, self.group) or set_aside(
            path, aside, lambda found: self._is_damaged(found, slot.binding)
        )
        if isinstance(moved, OSError):
            self.events.warn_once("aside", f"a corrupt entry stays at {path}: {moved}", moved)
        elif moved:
            self.events.corrupt(path, f"The damaged file: {aside}")
        return moved is True

    def source_at(self, path: str) -> tuple[Source, int]:
        """An open file and its size.

        Raises:
            OSError: it could not be opened.
        """
        source = FileSource(os.open(path, READ))
        return source, os.fstat(source.descriptor).st_size

    def _is_damaged(self, path: str, binding: bytes) -> bool:
        """Whether what stands at *path* is neither a lease nor an entry that may be good."""
        try:
            source, size = self.source_at(path)
            return judge(source, size, binding, self.key) is Verdict.DAMAGED
        except OSError:
            return True

    def publish(self, slot: Slot, pieces: Sequence[Buffer], token: bytes) -> None:
        """Put an entry at *slot*, all or nothing, in place of whatever stands there.

        Leans on: O_EXCL creation, an atomic rename within a directory. A rename whose reply was
        lost is recognised by the token at the destination.

        Raises:
            OSError: the file system refused; nothing is left behind.
        """
        path = slot.path
        folder, sync = path[: path.rindex("/") + 1], self.options.durability == "fsync"
        for attempt in range(1, _TRIES + 1):
            temp = folder + temp_name("entry")
            try:
                write_new(temp, _join(pieces), sync=sync)
                share(temp, self.group)
                os.rename(temp, path)  # noqa: PTH104  # measured: a Path costs more than the call
            except OSError as error:
                discard(temp)
                if error.errno not in AMBIGUOUS:
                    raise
                if self.token_at(path) == token:
                    self.events.note("lost-reply", path)
                    break
                trouble = self.make_folder(folder, slot.version)
                if trouble is not None and trouble.errno not in AMBIGUOUS:
                    raise trouble from error
                if attempt == _TRIES:
                    raise
            else:
                break
        if sync:
            sync_directory(folder)

    def remove_entry(self, slot: Slot, token: bytes) -> None:
        """Remove one writing: it is moved away, and put back where it was another after all."""
        if self.token_at(slot.path) == token:
            aside = f"{slot.path.rpartition('/')[0]}/{temp_name('expired')}"
            if set_aside(slot.path, aside, lambda found: self.token_at(found) in (None, token)):
                discard(aside)

    def remove(self, path: str) -> None:
        """Remove an entry or a folder; where that is not possible, say so once."""
        removal = remove(path, patience_s=0.2)
        if removal.left:
            left = removal.left[0]
            self.events.warn_once("remove", str(left), left.error)

    @staticmethod
    def token_at(path: str) -> bytes | None:
        """The token of the entry at *path*, from its first bytes, or None."""
        return token_of(read_head(path))

    def make_folder(self, folder: str, version: CodeVersion) -> OSError | None:
        """Make a shard, its namespace and the note of what the namespace is.

        What stood in the way is returned: it can be a lost reply. The next try to use the folder
        tells.
        """
        trouble = _make(folder, self.group)
        if isinstance(trouble, FileNotFoundError):
            self._look_past_cache(folder)
            trouble = _make(folder, self.group)
        if not os.path.lexists(version.folder + CODE_FILE):
            self.note_version(version)
        return trouble

    def write(self, path: str, data: bytes) -> None:
        """Leans on an atomic rename, as core's `publish`."""
        with contextlib.suppress(OSError):
            make_own_folder(path.rpartition("/")[0], self.group)
            publish_file(path, [data])

    def _look_past_cache(self, folder: str) -> None:
        """Make the client ask the server for *folder* and those above it, up to the root.

        Clearing on another machine moves them all away at once, while a client may show them for
        seconds. A removal is sent to the server whatever the cache says, and drops the name where
        there is nothing. A folder with something in it stays; an empty one is made anew.
        """
        folder = folder.rstrip("/")
        while len(folder) > len(self.layout.root):
            with contextlib.suppress(OSError):
                os.rmdir(folder)  # noqa: PTH106  # texts throughout
            folder = folder.rpartition("/")[0]


def _make(folder: str, group: int | None) -> OSError | None:
    """Make a folder and those above it; what stood in the way."""
    try:
        make_own_folder(folder, group)
    except OSError as error:
        return error
    return None


def _join(pieces: Sequence[Buffer]) -> list[Buffer]:
    """The same bytes in fewer pieces; large ones are not copied."""
    out: list[Buffer] = []
    for is_large, run in itertools.groupby(pieces, lambda piece: len(piece) >= _JOIN):
        if is_large:
            out.extend(run)
        else:
            out.append(b"".join(run))
    return out
