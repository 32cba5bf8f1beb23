"""Ends the pods of a test process that was killed. Run as a script, on the standard library alone."""

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path


def end(group: Path) -> None:
    """Kill what runs in the cgroup *group* and in those in it, and remove them."""
    for folder in (*(path for path in group.glob("*") if path.is_dir()), group):
        with suppress(OSError):  # it is gone, or goes now
            while pids := (folder / "cgroup.procs").read_text().split():
                for pid in pids:
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
                time.sleep(0.02)
            folder.rmdir()


if __name__ == "__main__":
    sys.stdin.read()  # ends when the process at the other end has closed it, or is gone
    for name in sys.argv[1:]:
        end(Path(name))
