"""Run as ``python -I -S child.py PROCS_FILE COMMAND…``: join a cgroup, become COMMAND.

The step's process joins by itself, before it is anything: not one of its pages is charged to the
orchestrator's group. Standard library only, for it runs without site-packages.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path

# Where the whole machine runs out, the kernel should take a step and not its orchestrator.
_FIRST_TO_GO = "500"


def main() -> None:
    """Join, and replace this process."""
    procs_file, *command = sys.argv[1:]
    if procs_file:
        Path(procs_file).write_text("0")
    first_to_go()
    os.execv(command[0], command)  # noqa: S606  # the command is our own


def first_to_go() -> None:
    """Have the kernel take this process, not its orchestrator, if the machine runs out."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_GO)


if __name__ == "__main__":
    main()
