"""A lease as it stands in a file: who computes, and how often it has said so."""

from __future__ import annotations

import functools
import hashlib
import os
import struct
from dataclasses import dataclass

from mlops_ext.processes.identity import Liveness, is_stopped, own_boot, own_host, start_of

_MAGIC = b"\x93MXLSE\r\n"
_STRUCT = struct.Struct("<8s16sQ8sQQ")
RENEWALS_AT = 24
"""Where the counter of renewals stands in the record."""


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """The 56 bytes of a lease: less than any entry has.

    Attributes:
        token: random, another one for each lease.
        renewals: counts up while the owner lives.
        host_token: says on which boot of which host, and in which PID namespace, the owner runs.
        pid: the owner's process id there.
        start: when that process started, in its kernel's own count (ticks on Linux); 0 if unknown.
    """

    token: bytes
    renewals: int
    host_token: bytes
    pid: int
    start: int

    @classmethod
    def parse(cls, data: bytes) -> LeaseRecord | None:
        """The record that *data* is, or None."""
        if len(data) != _STRUCT.size or data[:8] != _MAGIC:
            return None
        return cls(*_STRUCT.unpack(data)[1:])

    def pack(self) -> bytes:
        """The record as it is written."""
        return _STRUCT.pack(
            _MAGIC, self.token, self.renewals, self.host_token, self.pid, self.start
        )

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


def own_record() -> LeaseRecord:
    """A new lease of this process."""
    pid = os.getpid()
    start = start_of(pid) or ""
    token = _host_token(own_host(), own_boot())
    return LeaseRecord(os.urandom(16), 0, token, pid, int(start) if start.isdecimal() else 0)
