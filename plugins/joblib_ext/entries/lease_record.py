"""A claim as it stands in a file: who computes, and how often it has said so."""

from __future__ import annotations

import enum
import functools
import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from mlops_ext.processes.identity import is_alive, own_boot, own_host

_MAGIC = b"\x93MXCLM\r\n"
_STRUCT = struct.Struct("<8s16sQ8sQQ")
BEAT_AT = 24
"""Where the beat counter stands in the record."""


class Owner(enum.Enum):
    """What can be said of the process that holds a claim."""

    RUNNING = "running"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """The 56 bytes of a claim: less than any entry has.

    Attributes:
        token: random, another one for each claim.
        beat: counts up while the owner lives.
        place: says on which boot of which host, and in which PID namespace, the owner runs.
        pid: the owner's process id there.
        start: when that process started, in its kernel's ticks; 0 where unknown.
    """

    token: bytes
    beat: int
    place: bytes
    pid: int
    start: int

    @classmethod
    def parse(cls, data: bytes) -> ClaimRecord | None:
        """The record that *data* is, or None."""
        if len(data) != _STRUCT.size or data[:8] != _MAGIC:
            return None
        return cls(*_STRUCT.unpack(data)[1:])

    def pack(self) -> bytes:
        """The record as it is written."""
        return _STRUCT.pack(_MAGIC, self.token, self.beat, self.place, self.pid, self.start)

    def owner(self) -> Owner:
        """Whether the owner runs; UNKNOWN elsewhere, and for a stopped process."""
        if self.place != _place(own_host(), own_boot()):
            return Owner.UNKNOWN
        state = _process_state(self.pid)
        if state is None:
            return Owner.UNKNOWN if is_alive(self.pid) else Owner.DEAD
        letter, start = state
        if letter in "ZX" or (self.start and start != self.start):
            return Owner.DEAD
        return Owner.UNKNOWN if letter in "Tt" else Owner.RUNNING


@functools.lru_cache(maxsize=1)
def _place(host: str, boot: str) -> bytes:
    return hashlib.sha256(f"{host}\0{boot}".encode()).digest()[:8]


def _process_state(pid: int) -> tuple[str, int] | None:
    """State letter and start time of a process, from Linux's /proc; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return fields[0], int(fields[19])


@functools.lru_cache(maxsize=1)
def _start_of(pid: int) -> int:
    state = _process_state(pid)
    return state[1] if state else 0


def own_record() -> ClaimRecord:
    """A new claim of this process."""
    pid = os.getpid()
    return ClaimRecord(os.urandom(16), 0, _place(own_host(), own_boot()), pid, _start_of(pid))
