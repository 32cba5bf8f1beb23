"""Demos: what an extension claims, shown on this machine and checked while it is shown.

An extension publishes an entry point in group ``mlops_ext.demos`` that names a generator
function without arguments. It yields `Progress` as it goes and a `Claim` for each thing shown.
It runs in a process and a temporary directory of its own (``TMPDIR``), which is removed
afterwards; what it or its framework prints goes to a log. If the user stops it, it gets a
`KeyboardInterrupt`, and some seconds to clean up; then its process group is killed. A demo that
has the name of a framework is skipped if that is not installed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import TextIO

from mlops_ext import settings
from mlops_ext.extensions.entry_points import find_entry_points

__all__ = ["GROUP", "Claim", "Event", "Progress", "names", "read_event"]

GROUP = "mlops_ext.demos"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Something a demo shows.

    Attributes:
        what: what is compared ("computations, 8 processes on a cold function").
        before: the measured figure without the extension, in words.
        after: the measured figure with it, in words.
        holds: whether the measured figures support the claim.
    """

    what: str
    before: str
    after: str
    holds: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a demo is doing now.

    Attributes:
        text: a few words.
    """

    text: str


Event = Claim | Progress


def names() -> list[str]:
    """The names of the demos that are installed and not switched off, sorted."""
    disabled = set(settings.load(settings.CoreSettings).disable)
    return sorted(find_entry_points(GROUP).keys() - disabled)


def write_event(event: Event, stream: TextIO) -> None:
    """Write *event* as one line of JSON."""
    stream.write(json.dumps(dataclasses.asdict(event)) + "\n")
    stream.flush()


def read_event(line: str) -> Event:
    """The event that `write_event` wrote.

    Raises:
        ValueError: *line* is not such a line.
    """
    values = json.loads(line)
    return Claim(**values) if "holds" in values else Progress(**values)


def child(name: str) -> None:
    """Run the demo called *name*; events go to the real standard output, all else to stderr."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # how the command line stops us
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)
        for event in find_entry_points(GROUP)[name].load()():
            write_event(event, stream)


if __name__ == "__main__":
    child(sys.argv[1])
