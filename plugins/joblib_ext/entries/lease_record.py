"""A lease as it stands in a file: who computes, and how often it has said so."""

from __future__ import annotations

import functools
import hashlib
import os
import struct
from dataclasses import dataclass, field, replace
from typing import Any

from mlops_ext.processes.identity import Liveness, is_stopped, own_boot, own_host, start_of

_MAGIC = b"\x93MXLSE\r\n"
_STRUCT = struct.Struct("<8s8sQ8sQII15s")
# Where the counter of renewals stands in the record.
RENEWALS_AT = 16
_HOST_BYTES = 15
# In place of the host: the lease has ended, and whoever meets it may take it over.
_NOBODY = bytes(8)
_MS = 1000


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The 63 bytes of a lease: less than any entry has.

    Attributes:
        token: random, another one for each lease.
        renewals: counts up while the owner lives.
        host_token: says on which boot of which host, and in which PID namespace, the owner runs.
        start: when that process started, in its kernel's own count (ticks on Linux); 0 if unknown.
        pid: the owner's process id there.
        lease_ms: how long the owner may be silent, as the owner has it.
        host: the end of the host's name, for people.
        tag: in an object store, the object's tag: who swaps it out is its heir; else None.
    """

    token: bytes
    renewals: int
    host_token: bytes
    start: int
    pid: int
    lease_ms: int
    host: bytes
    tag: Any = field(default=None, compare=False)

    @classmethod
    def parse(cls, data: bytes, tag: Any = None) -> LeaseRecord | None:
        """The record that *data* is, or None."""
        if len(data) != _STRUCT.size or data[:8] != _MAGIC:
            return None
        return replace(cls(*_STRUCT.unpack(data)[1:]), tag=tag)

    def ended(self) -> LeaseRecord:
        """A tombstone for this lease: its token, without an owner."""
        return replace(self, host_token=_NOBODY, lease_ms=0)

    @property
    def is_over(self) -> bool:
        """Whether it is a tombstone."""
        return self.host_token == _NOBODY

    def pack(self) -> bytes:
        """The record as it is written."""
        rest = (self.host_token, self.start, self.pid, self.lease_ms, self.host)
        return _STRUCT.pack(_MAGIC, self.token, self.renewals, *rest)

    @property
    def lease_s(self) -> float:
        """How long the owner may be silent: readers judge it by what it said of itself."""
        return self.lease_ms / _MS

    def __str__(self) -> str:
        host = self.host.rstrip(b"\0").decode(errors="replace")
        return f"{host}, pid {self.pid}"

    def owner(self) -> Liveness:
        """Whether the owner runs; UNKNOWN elsewhere, if it is stopped, and without its start."""
        if self.host_token != _host_token(own_host(), own_boot()):
            return Liveness.UNKNOWN
        start = start_of(self.pid)
        if start is None or (self.start and start.isdecimal() and int(start) != self.start):
            return Liveness.DEAD
        known = self.start and start and not is_stopped(self.pid)
        return Liveness.ALIVE if known else Liveness.UNKNOWN


@functools.lru_cache(maxsize=1)
def _host_token(host: str, boot: str) -> bytes:
    return hashlib.sha256(f"{host}\0{boot}".encode()).digest()[:8]


def own_record(lease_s: float) -> LeaseRecord:
    """A new lease of this process, which may be silent for *lease_s*."""
    pid, host = os.getpid(), own_host()
    start = start_of(pid) or ""
    return LeaseRecord(
        token=os.urandom(8),
        renewals=0,
        host_token=_host_token(host, own_boot()),
        start=int(start) if start.isdecimal() else 0,
        pid=pid,
        lease_ms=int(lease_s * _MS),
        host=host.encode()[-_HOST_BYTES:].ljust(_HOST_BYTES, b"\0"),
    )
