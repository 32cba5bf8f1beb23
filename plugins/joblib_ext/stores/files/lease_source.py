"""One small file a process and store that is renewed while the process computes.

A lease is a hard link to it under the name of the entry to come. So a lease costs one link, no new
file, and one heartbeat serves all leases of the process.
"""

from __future__ import annotations

import contextlib
import os
import threading

from joblib_ext.entries.lease_record import RENEWALS_AT, LeaseRecord, own_record
from joblib_ext.stores import leases
from joblib_ext.stores.files.entry_files import EntryFiles
from joblib_ext.stores.files.folders import make_own_folder, share
from joblib_ext.stores.files.moving import AMBIGUOUS, discard
from mlops_ext.files import temp_name, write_new

# With three replies of ten lost, half as many would leave one process of 400 without a lease.
_TRIES = 10


class LeaseSource:
    """The file that this process's leases on one store are links to.

    Attributes:
        path: the file, or "" where there is none yet.
        record: what it says.
        former: tokens of earlier files of this process, which are renewed no more.
    """

    def __init__(self, folder: str, lease_s: float, group: int | None = None) -> None:
        self._folder, self._lease_s, self._group = folder, lease_s, group
        self._lock = threading.Lock()
        self._descriptor = -1
        self._renewals = 0
        self.path = ""
        self.record: LeaseRecord = own_record(self._lease_s)
        self.former: set[bytes] = set()

    def ready(self, stale: str = "") -> str:
        """The path to link from; made if it is missing, or if it is *stale*: somebody reaped it.

        Raises:
            OSError: the store cannot be written.
        """
        with self._lock:
            for left in reversed(range(_TRIES)):  # a reply can be lost: the next name is another
                if self.path and self.path != stale:
                    break
                try:
                    self._make()
                except OSError as error:
                    if error.errno not in AMBIGUOUS or not left:
                        raise
            return self.path

    def _make(self) -> None:
        self._close()
        make_own_folder(self._folder, self._group)
        path = f"{self._folder}/{temp_name('owner')}"
        self.former.add(self.record.token)
        self.record = own_record(self._lease_s)
        write_new(path, [self.record.pack()])
        share(path, self._group)
        self._descriptor = os.open(path, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
        self.path, self._renewals = path, 0

    def renew(self) -> None:
        """Say that the process lives.

        The counter is rewritten in the open file, never by name. The data is synced, or an NFS
        client would keep it to itself. Readers see it by opening: attributes may be cached.
        """
        with self._lock, contextlib.suppress(OSError):
            if self._descriptor >= 0:
                self._renewals += 1
                os.pwrite(self._descriptor, self._renewals.to_bytes(8, "little"), RENEWALS_AT)
                os.fsync(self._descriptor)

    def _close(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1

    def forget(self) -> None:
        """After a fork: the file belongs to the parent."""
        self._lock = threading.Lock()
        self._close()
        self.path = ""
        self.former.clear()

    def close(self) -> None:
        """Take the file away: the process ends."""
        if self.path:
            discard(self.path)
        self.forget()


def source_of(store: EntryFiles) -> LeaseSource:
    """The source of this process for one store."""
    layout, lease_s = store.layout, leases.long_enough(store.options.lease_s)
    name = f"{layout.leases} {lease_s}"
    known = leases.sources
    found: LeaseSource = known.get(name) or known.setdefault(
        name, LeaseSource(layout.leases, lease_s, store.group)
    )
    return found
